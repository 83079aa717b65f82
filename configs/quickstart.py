"""The quickstart: the embedded world, everything small, minutes on two CPU cores.

user-llm quickstart

2 CPU cores, 8 minutes beside a test, twice as long on a busy machine. Test, 500 users: encoder's
recall_at_10 0.42, of the LLM that reads it 0.23 (0.27 in an earlier run), without memory 0.06;
favorite_category 0.52 against 0.14.
"""

from user_llm.quickstart import config

__all__ = ["config"]
