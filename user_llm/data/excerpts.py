"""Which of a user's past texts a prompt spells out."""

import logging
from collections.abc import Sequence

import numpy as np

from user_llm.config import Retrieval


def choose(
    texts: Sequence[str], query: str, how: Retrieval, count: int, seed: int | Sequence[int] = 0
) -> list[int]:
    """The places of at most `count` of a user's texts, which come oldest first.

    `recency`: the newest, and `random` ones, in the texts' order. `bm25`: those most like the
    query by whitespace's words (as LaMP's authors cut them, arXiv 2304.11406), the best one last,
    where a prompt that is too long is not cut; without a word in common, the first ones.

    Raises:
      ValueError: `bm25` is asked for, and its package is not installed.
    """
    count = min(count, len(texts))
    if how == "recency":
        return list(range(len(texts) - count, len(texts)))
    if how == "random":
        return np.sort(np.random.default_rng(seed).permutation(len(texts))[:count]).tolist()
    try:
        from bm25s import BM25
    except ImportError as error:
        raise ValueError('retrieval "bm25" wants bm25s; install the extra `text`') from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index that it builds
    corpus = [text.split() for text in texts]
    known = {word for words in corpus for word in words}
    words = [word for word in query.split() if word in known]
    if not words or not count:
        return list(range(count))
    index = BM25()
    index.index(corpus, show_progress=False)
    places, _ = index.retrieve([words], k=count, show_progress=False)
    return places[0, ::-1].tolist()
