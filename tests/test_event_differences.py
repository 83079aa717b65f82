"""What sets events apart, beside loops over all events, of which some have no vector."""

import numpy as np
import pytest
import timelines_made

from user_llm.config import PeerConfig
from user_llm.data.differences import CANDIDATES, Compared, column
from user_llm.data.peers import representatives

USERS, ITEMS, LONGEST, WIDTH = 30, 4, 9, 3
rng = np.random.default_rng(0)
TIMELINES = [rng.integers(ITEMS, size=rng.integers(1, LONGEST)).tolist() for _ in range(USERS)]
TIMES = [np.sort(rng.integers(12, size=len(own))) for own in TIMELINES]  # with many ties
VECTORS = [rng.normal(size=(len(own), WIDTH)).astype(np.float32) for own in TIMELINES]
KNOWN = [rng.random(len(own)) < 2 / 3 for own in TIMELINES]
CONFIGS = [
    PeerConfig(most=3),
    PeerConfig(most=3, weights="distance"),
    PeerConfig(most=3, weights="softmax", temperature=0.5),
    PeerConfig(chosen="random", most=2),
    PeerConfig(chosen="least_similar", most=2),
    PeerConfig(chosen="representatives", most=2),
    PeerConfig(chosen="shuffled", most=3),
    PeerConfig(chosen="none", most=3),
]


def world(without_later_than=99):
    """The data set of all events up to a time, their vectors, and which events those are."""
    kept = [times <= without_later_than for times in TIMES]
    items = [np.array(own)[k].tolist() for own, k in zip(TIMELINES, kept, strict=True)]
    times = np.concatenate([own[k] for own, k in zip(TIMES, kept, strict=True)])
    data = timelines_made.dataset(items, items=ITEMS, times=times)
    vectors = np.concatenate([own[k] for own, k in zip(VECTORS, kept, strict=True)])
    known = np.concatenate([own[k] for own, k in zip(KNOWN, kept, strict=True)])
    return data, Compared(vectors * known[:, None], known, "made"), np.concatenate(kept)


def owners(data):
    return np.repeat(np.arange(len(data.users)), np.diff(data.offsets))


def candidates(data, known, event):
    """Each other user's newest event on the same item that has a vector, the newest first."""
    user, found = owners(data), {}
    for other in np.flatnonzero(known & (data.item == data.item[event])):
        if user[other] != user[event] and data.times[other] < data.times[event]:
            found[user[other]] = other  # a later one of a user has a higher number
    return sorted(found.values(), key=lambda e: (-data.times[e], -e))


def mean_so_far(data, compared, event):
    first = data.offsets[owners(data)[event]]
    own = np.arange(first, event + 1)
    return compared.vectors[own[compared.known[own]]].mean(0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.chosen}-{c.weights}")
def test_a_difference_is_that_of_plain_loops(config, tmp_path):
    data, compared, _ = world()
    found, user = np.asarray(column(data, compared, config, tmp_path)), owners(data)
    chosen_among_more = 0
    for event, row in enumerate(found):
        some = candidates(data, compared.known, event)
        vector = compared.vectors[event]
        assert row[-1] == bool(compared.known[event] and some) or config.chosen == "shuffled"
        if not row[-1] or config.chosen == "none":
            assert not row[:-1].any()
            continue
        newest, some = some[: config.most], some[: CANDIDATES * config.most]
        if config.chosen == "least_similar":
            cosines = [
                vector @ compared.vectors[e] / np.linalg.norm(compared.vectors[e]) for e in some
            ]
            newest = [some[i] for i in np.argsort(cosines, kind="stable")[: config.most]]
        if config.chosen == "representatives":
            rows = representatives(vector, compared.vectors[some], config.most)
            newest = [some[i] for i in rows]
        if config.chosen in ("random", "shuffled"):
            others = np.flatnonzero(compared.known & (user != user[event]))
            others = others[data.times[others] < data.times[event]]
            pool = some if config.chosen == "random" else others.tolist()
            chosen_among_more += len(pool) > config.most
            assert made_of(vector - row[:-1], compared.vectors[pool], config.most)
            continue
        weights = np.ones(len(newest))
        if config.weights != "uniform":
            own = mean_so_far(data, compared, event)
            apart = np.array([np.linalg.norm(own - mean_so_far(data, compared, e)) for e in newest])
            dep = config.weights == "distance"
            weights = np.exp(apart / apart.sum() if dep else -apart / config.temperature)
        mean = np.average(compared.vectors[newest], axis=0, weights=weights)
        np.testing.assert_allclose(row[:-1], vector - mean, atol=1e-5)
    assert found[:, -1].sum() > 20
    assert config.chosen not in ("random", "shuffled") or chosen_among_more > 10


def made_of(mean, pool, most):
    """Whether it is the mean of some of these vectors, of at most so many, with repeats."""
    sums = {0: np.zeros((1, WIDTH))}
    for count in range(1, most + 1):
        sums[count] = (sums[count - 1][:, None] + pool[None]).reshape(-1, WIDTH)
        if (np.abs(sums[count] / count - mean).max(1) < 1e-4).any():
            return True
    return False


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.chosen}-{c.weights}")
def test_what_comes_later_changes_none(config, tmp_path):
    data, compared, _ = world()
    found = np.asarray(column(data, compared, config, tmp_path / "whole"))
    early, told, kept = world(without_later_than=7)
    assert len(early.item) < len(data.item)
    np.testing.assert_allclose(
        column(early, told, config, tmp_path / "early"), found[kept], atol=1e-6
    )


def test_no_vector_at_all_is_no_difference(tmp_path):
    data, compared, _ = world()
    silent = compared._replace(known=np.zeros_like(compared.known))
    assert not np.asarray(column(data, silent, PeerConfig(weights="distance"), tmp_path)).any()
