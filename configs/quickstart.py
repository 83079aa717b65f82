"""The quickstart: the embedded world, everything small, minutes on two CPU cores.

user-llm quickstart
"""

from user_llm.quickstart import config

__all__ = ["config"]
