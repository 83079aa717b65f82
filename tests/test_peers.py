"""Who is chosen among peers, and what sets a user apart from them; growth changes no past."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers_made import arrays, everybody, grown, index, listed, worlds
from scipy.special import softmax
from sklearn.cluster import KMeans

from user_llm.data import peer_index, peers
from user_llm.data.peers import (
    differences,
    least_similar_peers,
    random_peers,
    representative_peers,
    representatives,
    running_means,
)


@settings(max_examples=60)
@given(worlds, st.data(), st.sampled_from(["uniform", "distance", "softmax"]))
def test_what_comes_later_changes_no_earlier_peer_and_no_difference(users, data, weights):
    new, moved = grown(data, users)
    vectors = np.random.default_rng(0).normal(size=(sum(map(len, new)), 5)).astype(np.float32)
    told = []
    for world, own in ((users, vectors[moved]), (new, vectors)):
        asked, numbers = everybody(users), np.append(everybody(users), -1)
        if world is new:
            asked, numbers = moved, np.full(len(vectors) + 1, -2)
            numbers[moved], numbers[-1] = everybody(users), -1
        with index(world) as made:
            peers = made.same_item(asked, 3)
        means = running_means(own, arrays(world).offsets)
        chosen = random_peers(peers, everybody(users), 2)
        unlike = least_similar_peers(own, peers, asked, 2)
        seen = (numbers[peers], numbers[chosen], numbers[unlike], means[asked])
        told.append((*seen, *differences(own, peers, asked, weights, means=means)))
    for before, after in zip(*told, strict=True):
        np.testing.assert_array_equal(before, after)


def their_representatives(own, others, k):
    """Plain loops around scikit-learn's clusters, the own vector first."""
    fitted = KMeans(n_clusters=k + 1, random_state=42).fit(np.stack([own, *others]))
    found = []
    for label, centre in enumerate(fitted.cluster_centers_):
        members = [row for row in range(len(others)) if fitted.labels_[1 + row] == label]
        if label != fitted.labels_[0] and members:
            away = [sum((others[row].astype("f8") - centre) ** 2) for row in members]
            found.append(members[away.index(min(away))])
    return sorted(found)


@pytest.mark.parametrize("count, k", [(4, 4), (5, 4), (9, 1), (30, 4), (30, 7)])
def test_representatives_are_those_of_plain_loops(count, k):
    rng = np.random.default_rng(count)
    own, others = rng.normal(size=6).astype("f4"), rng.normal(size=(count, 6)).astype("f4")
    found = representatives(own, others, k)
    assert found.tolist() == their_representatives(own, others, k)
    assert found.tolist() == representatives(own, others, k).tolist()
    assert 0 < len(found) <= k


def test_few_are_all_taken_and_of_equal_ones_the_first():
    rng = np.random.default_rng(0)
    own, others = rng.normal(size=3), rng.normal(size=(2, 3))
    assert representatives(own, others, 3).tolist() == [0, 1]
    assert representatives(own, others[:0]).tolist() == []
    assert representatives(own, np.repeat(others, 4, axis=0)).tolist() == [0, 4]
    assert representatives(own, np.repeat(own[None], 8, axis=0)).tolist() == []  # all are alike
    vectors = np.concatenate([own[None], np.repeat(others, 4, axis=0)])
    candidates = np.array([[8, 7, 6, 5, 4, 3, 2, 1], [3, -1, -1, -1, -1, -1, -1, -1]])
    found = representative_peers(vectors, candidates, np.array([0, 0]))
    assert found.tolist() == [[8, 4, -1, -1], [3, -1, -1, -1]]


def test_a_missing_scikit_learn_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    peers._scikit_learn.cache_clear()
    with pytest.raises(ValueError, match="want scikit-learn; install the extra `peers`"):
        representatives(np.zeros(2), np.zeros((9, 2)))


def test_random_peers_go_by_their_seed_and_come_in_order():
    candidates = np.array([np.arange(20)[::-1]] * 500 + [[3, 1] + [-1] * 18])
    found = random_peers(candidates, np.arange(501), 4)
    np.testing.assert_array_equal(random_peers(candidates[7:9], np.array([7, 8]), 4), found[7:9])
    assert (np.diff(found[:500]) < 0).all() and found[500].tolist() == [3, 1, -1, -1]
    shares = np.bincount(found[:500].reshape(-1), minlength=20) / 500
    assert shares.min() > 0.1 and shares.max() < 0.3  # 4 of 20 are 0.2


def test_the_least_similar_have_the_lowest_cosine_whatever_their_size(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 3)).astype("f4") * rng.uniform(1, 9, (12, 1)).astype("f4")
    vectors[4] = 0
    candidates = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, -1, -1, -1], [-1] * 6, [5, 4, 5, 5, 5, 5]])
    events = np.array([0, 10, 11, 5])
    found = least_similar_peers(vectors, candidates, events, 4)
    for row, event, some in zip(listed(found), events, listed(candidates), strict=True):
        unit = {e: vectors[e] / max(np.linalg.norm(vectors[e]), 1e-9) for e in (event, *some)}
        assert row == sorted(some, key=lambda e: round(float(unit[event] @ unit[e]), 5))[:4]
    monkeypatch.setattr(peer_index, "PIECE", 4)
    np.testing.assert_array_equal(least_similar_peers(vectors, candidates, events, 4), found)
    assert least_similar_peers(vectors, candidates, events, 8).shape == (4, 8)


def test_running_means_are_of_a_users_vectors_so_far():
    vectors = np.random.default_rng(0).normal(size=(9, 4)).astype("f4")
    offsets = np.array([0, 4, 4, 9])
    so_far, whole = running_means(vectors, offsets), running_means(vectors, offsets, whole=True)
    assert so_far.dtype == np.float32
    for start, stop in ((0, 4), (4, 9)):
        for event in range(start, stop):
            mean = vectors[start : event + 1].astype("f8").mean(0)
            np.testing.assert_allclose(so_far[event], mean, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(whole[event], so_far[stop - 1])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("weights", ["uniform", "distance", "softmax"])
def test_differences_are_those_of_the_published_formula(weights, whole, monkeypatch):
    rng = np.random.default_rng(0)
    vectors, offsets = rng.normal(size=(40, 6)).astype("f4"), np.array([0, 15, 22, 40])
    events = np.array([39, 14, 3, 20, 3])
    peers = np.array([[0, 16, 5], [15, -1, -1], [-1, -1, -1], [38, 1, -1], [16, 16, 16]])
    means = running_means(vectors, offsets, whole=whole)
    found, there = differences(vectors, peers, events, weights, means=means, temperature=0.5)
    assert there.tolist() == [True, True, False, True, True] and found.dtype == np.float32
    e, m = vectors.astype("f8"), means.astype("f8")
    for row, event, some in zip(found, events, listed(peers), strict=True):
        a = np.array([np.sqrt(((m[event] - m[v]) ** 2).sum()) for v in some])
        logits = {"uniform": 0 * a, "distance": a / max(a.sum(), 1e-9), "softmax": -a / 0.5}
        w = softmax(logits[weights]) if some else []
        wanted = sum((x * (e[event] - e[v]) for x, v in zip(w, some, strict=True)), np.zeros(6))
        np.testing.assert_allclose(row, wanted, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(peer_index, "PIECE", 6)
    again, _ = differences(vectors, peers, events, weights, means=means, temperature=0.5)
    np.testing.assert_array_equal(again, found)


def test_peers_whose_means_are_the_users_own_weigh_the_same():
    vectors = np.arange(6, dtype="f4").reshape(3, 2)
    means = np.ones((3, 2), "f4")
    asked = np.array([[1, 2]]), np.array([0])
    found, _ = differences(vectors, *asked, "distance", means=means)
    np.testing.assert_array_equal(found, differences(vectors, *asked)[0])
    none, there = differences(vectors, np.zeros((1, 0), int), np.array([0]))
    assert none.tolist() == [[0, 0]] and there.tolist() == [False]


def test_weights_that_lack_something_are_refused():
    vectors, asked = np.ones((3, 2), "f4"), (np.array([[1, 2]]), np.array([0]))
    with pytest.raises(ValueError, match='weights "distance" go by users\' means; give those'):
        differences(vectors, *asked, "distance")
    with pytest.raises(ValueError, match="a temperature of 0.0 is not above 0"):
        differences(vectors, *asked, "softmax", means=vectors, temperature=0.0)
