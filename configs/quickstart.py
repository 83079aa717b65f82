"""The quickstart: the embedded world, everything small, minutes on two CPU cores.

user-llm quickstart

2 CPU cores, 5 minutes. Test, 500 users: encoder's recall_at_10 0.42, of the LLM that reads it 0.22,
without memory 0.05; favorite_category 0.35 against 0.14.
"""

from user_llm.quickstart import config

__all__ = ["config"]
