"""Who a review is compared with: others from before it, and of them some who stand for all."""

import sys

import numpy as np
import pytest
import timelines_made
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from user_llm.inference.representatives import Reviewers, representatives

# A user's events as (item, seconds since the one before): many at the same time, items that recur.
timelines = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


def made(drawn):
    times = [t for one in drawn for t in np.cumsum([gap for _, gap in one]).tolist()]
    return timelines_made.dataset([[item for item, _ in one] for one in drawn], times=times)


def before(data, event):
    """By the words of `Reviewers.before`, one event at a time."""
    user = lambda e: int(np.searchsorted(data.offsets, e, side="right"))
    found = {}
    for other in range(len(data.item)):
        same = data.item[other] == data.item[event] and user(other) != user(event)
        if same and data.reviews[other] and data.times[other] < data.times[event]:
            known = found.get(user(other))
            if known is None or data.times[other] >= data.times[known]:
                found[user(other)] = other
    return sorted(found.values(), key=lambda e: (data.times[e], e))


@given(timelines)
def test_others_wrote_strictly_before(drawn):
    data = made(drawn)
    reviewers = Reviewers(data)
    for event in range(len(data.item)):
        assert list(reviewers.before(event)) == before(data, event)


vectors = st.integers(1, 12).flatmap(
    lambda n: arrays(np.float32, (n + 1, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@given(vectors, st.integers(1, 4), st.integers(0, 3))
def test_representatives_are_nearest_to_the_centres_of_the_other_clusters(drawn, k, seed):
    from sklearn.cluster import KMeans

    own, others = drawn[0], drawn[1:]
    found = representatives(own, others, k, seed).tolist()
    whole = drawn.astype(np.float64)
    clusters = KMeans(min(k + 1, len(whole)), random_state=seed).fit(whole)
    wanted = []
    for label in range(clusters.n_clusters):
        members = [row for row in range(len(whole)) if clusters.labels_[row] == label]
        if not members or 0 in members:
            continue
        centre = clusters.cluster_centers_[label]
        apart = [np.square(whole[row] - centre).sum() for row in members]
        wanted.append(members[apart.index(min(apart))] - 1)
    assert found == sorted(wanted)
    assert len(set(found)) == len(found) <= k


def test_who_writes_alike_is_represented_once():
    centres = np.eye(5, dtype=np.float32) * 10
    near = np.random.default_rng(0).normal(scale=0.1, size=(40, 5)).astype(np.float32)
    group = np.arange(40) % 5
    found = representatives(centres[0], centres[group] + near, 4, 42)
    assert sorted(group[found].tolist()) == [1, 2, 3, 4]  # none who writes as the own
    assert representatives(centres[0], np.tile(centres[:1], (6, 1)), 4, 42).tolist() == []


def test_scikit_learn_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ValueError, match="want scikit-learn; install the extra `dpl`"):
        representatives(np.zeros(2, np.float32), np.ones((4, 2), np.float32), 4, 42)
