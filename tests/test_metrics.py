"""The metrics against brute force, the libraries over the whole corpus, and the monoid laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.metrics import (
    Accuracy,
    Ranking,
    RatingError,
    TextOverlap,
)

RANKS = st.lists(st.integers(1, 14), max_size=12)
WORDS = st.lists(st.sampled_from(("the", "film", "was", "slow", ".")), max_size=9).map(" ".join)
TEXTS = st.lists(st.tuples(WORDS, WORDS), max_size=6)
ANSWERS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=6)


def ranking(ranks):
    return Ranking.from_ranks(np.array(ranks, np.int64))


def accuracy(pairs):
    return Accuracy.from_answers([a for a, _ in pairs], [t for _, t in pairs])


def overlap(pairs):
    return TextOverlap.from_texts([a for a, _ in pairs], [t for _, t in pairs])


def error(pairs):
    return RatingError.from_ratings([a / 3 for a, _ in pairs], [t / 3 for _, t in pairs])


@pytest.mark.parametrize(
    ("make", "inputs"),
    [(ranking, RANKS), (accuracy, ANSWERS), (error, ANSWERS), (overlap, TEXTS)],
)
@settings(max_examples=40)
@given(data=st.data())
def test_metrics_are_commutative_monoids(make, inputs, data):
    a, b, c = (make(data.draw(inputs)) for _ in range(3))
    empty = type(a).empty()
    assert a.merge(empty) == a == empty.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert empty == make([]) and empty.compute() == {}


@given(RANKS.filter(len), RANKS)
def test_ranking_is_the_mean_over_all_answers_however_they_came(first, second):
    metric = ranking(first).merge(ranking(second))
    ranks = first + second
    expected = {f"recall_at_{k}": sum(r <= k for r in ranks) / len(ranks) for k in (1, 5, 10)} | {
        "ndcg_at_10": sum(1 / math.log2(1 + r) for r in ranks if r <= 10) / len(ranks)
    }
    assert metric.compute() == pytest.approx(expected)


def test_ranking_from_lists_counts_a_lacking_target_as_a_miss():
    metric = Ranking.from_lists([["a", "b"], ["b", "c", "a"], ["c"], []], ["a", "a", "a", "a"])
    assert metric == ranking([1, 3, 11, 11])
    assert metric.compute()["recall_at_5"] == 0.5


def test_ranks_below_one_are_refused():
    with pytest.raises(ValueError, match="rank 0 is below 1"):
        ranking([3, 0])


def test_answers_without_their_targets_are_refused():
    with pytest.raises(ValueError):
        Accuracy.from_answers([1, 2], [1])


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=1))
def test_rating_error_is_that_of_numpy(pairs):
    said, given = np.array(pairs).T / 2
    found = RatingError.from_ratings(said.tolist(), given.tolist()).compute()
    assert found["mae"] == pytest.approx(np.abs(said - given).mean())
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(said - given).mean()))


def test_accuracy_is_the_share_of_equal_answers():
    batches = [Accuracy.from_answers(["a", "b", "c"], ["a", "x", "c"])]
    batches.append(Accuracy.from_answers(["d"], ["x"]))
    assert batches[0].merge(batches[1]).compute() == {"accuracy": 0.5}


@settings(max_examples=60)
@given(TEXTS.filter(len), TEXTS)
def test_text_overlap_in_parts_is_that_of_the_libraries_on_the_whole(first, second):
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    pairs = first + second
    rouge = RougeScorer(["rouge1", "rougeL"])
    scores = [rouge.score(target, answer) for answer, target in pairs]
    expected = {
        "rouge_1": sum(s["rouge1"].fmeasure for s in scores) / len(pairs),
        "rouge_l": sum(s["rougeL"].fmeasure for s in scores) / len(pairs),
        "bleu": corpus_bleu([a for a, _ in pairs], [[t for _, t in pairs]]).score,
    }
    assert overlap(first).merge(overlap(second)).compute() == pytest.approx(expected)
