"""Which past texts a prompt spells out: the newest, random ones, those most like the present."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_llm.data.excerpts import choose

TEXTS = ["a red lamp", "it broke again", "bad and broke: it is bad", "fine"]


def test_texts_are_chosen_by_age_chance_or_likeness():
    assert choose(TEXTS, "", "recency", 2) == [2, 3]
    assert choose(TEXTS, "", "recency", 9) == [0, 1, 2, 3]
    assert choose(TEXTS, "", "recency", 0) == choose(TEXTS, "it", "bm25", 0) == []
    drawn = [choose(TEXTS, "", "random", 2, seed=seed) for seed in range(20)]
    assert drawn == [choose(TEXTS, "", "random", 2, seed=seed) for seed in range(20)]
    assert len(set(map(tuple, drawn))) > 3
    assert all(one == sorted(set(one)) for one in drawn)
    assert sorted(choose(TEXTS, "it broke: bad", "bm25", 9)) == [0, 1, 2, 3]
    assert choose(TEXTS, "it broke: bad", "bm25", 2) == [1, 2]  # the best last
    assert choose(TEXTS, "zzz", "bm25", 2) == [0, 1]
    assert choose([], "it", "bm25", 2) == []


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=6))
def test_bm25_is_its_formula(documents):
    query = ["a", "b"]
    best, *_ = choose([" ".join(words) for words in documents], "a b", "bm25", 1)
    if not any(word in words for words in documents for word in query):
        assert best == 0
        return
    mean = sum(map(len, documents)) / len(documents)

    def worth(words):
        counts, total = Counter(words), 0.0
        for word in query:
            seen = sum(word in d for d in documents)
            idf = math.log(1 + (len(documents) - seen + 0.5) / (seen + 0.5))
            share = counts[word] + 1.5 * (0.25 + 0.75 * len(words) / mean)
            total += idf * counts[word] / share
        return total

    assert worth(documents[best]) == pytest.approx(max(map(worth, documents)), rel=1e-4)
