"""The metrics against brute force, the libraries over the whole corpus, and the monoid laws."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from user_llm.evaluation.metrics import (
    Accuracy,
    Ranking,
    RatingError,
    TextOverlap,
    rank_of_target,
    spread,
    table,
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


@given(st.data())
def test_rank_of_target_matches_sorting_with_the_target_last_among_equals(data):
    rows, items = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 7)))
    # Few distinct scores, so that ties abound.
    scores = data.draw(arrays(np.float32, (rows, items), elements=st.sampled_from([-1.0, 0, 0.5])))
    target = data.draw(arrays(np.int32, rows, elements=st.integers(0, items - 1)))
    excluded = data.draw(arrays(np.bool_, (rows, items)))

    expected = []
    for row, wanted, out in zip(scores, target, excluded, strict=True):
        candidates = [i for i in range(items) if not out[i] or i == wanted]
        order = sorted(candidates, key=lambda i: (-row[i], i == wanted))
        expected.append(order.index(wanted) + 1)
    np.testing.assert_array_equal(rank_of_target(scores, target, excluded), expected)


def test_a_nan_score_never_helps_the_target():
    scores = np.array([[np.nan, 0.0, 1.0], [0.5, np.nan, 0.0]], np.float32)
    none = np.zeros((2, 3), bool)
    np.testing.assert_array_equal(rank_of_target(scores, np.array([0, 0]), none), [3, 2])


def test_spread_is_the_mean_and_the_sample_deviation_of_each_value():
    runs = [
        [{"system": "a", "metrics": {"x/y/z": value}}, {"system": "b", "metrics": {}}]
        for value in (1.0, 2.0, 6.0)
    ]
    means, deviations = spread(runs)
    assert means[0] == {"system": "a", "metrics": {"x/y/z": 3.0}}
    assert deviations[0]["metrics"]["x/y/z"] == pytest.approx(statistics.stdev([1, 2, 6]))
    assert means[1] == deviations[1] == {"system": "b", "metrics": {}}
    assert "3.000 ±2.646*" in table(means, deviations)


def test_table_groups_columns_marks_the_best_contender_and_shows_what_is_missing():
    recall, accuracy = "test/next_item/recall_at_10", "test/favorite_category/accuracy"
    text = table(
        [
            {"system": "oracle", "metrics": {recall: 0.9}},
            {"system": "user_llm", "metrics": {recall: 0.31, accuracy: 0.75}},
            {"system": "no_context", "metrics": {recall: 0.1, accuracy: 0.75}},
        ]
    )
    groups, heading, _, oracle, ours, plain = text.splitlines()
    assert groups.index("test/next_item") < groups.index("test/favorite_category")
    assert heading.split() == ["system", "│", "recall@10", "│", "accuracy"]
    assert oracle.split() == ["oracle", "│", "0.900", "│", "–"]
    assert ours.split() == ["user_llm", "│", "0.310*", "│", "0.750*"]
    assert plain.split() == ["no_context", "│", "0.100", "│", "0.750*"]
