"""Splits, windows, packing and histories against brute force; nothing ever sees its own future."""

from collections import Counter
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_llm.config import DataConfig
from user_llm.data.timelines import (
    histories,
    pack,
    split,
    spread,
    thinned,
    training_targets,
    user_of,
    windows,
)

# Users' event times, in order; a user may have no event, and events may share a second.
timelines = st.lists(
    st.lists(st.integers(0, 40), max_size=12).map(sorted), min_size=1, max_size=8
).filter(lambda users: any(users))
configs = st.builds(
    DataConfig,
    protocol=st.sampled_from(["stable_leave_one_out", "by_time"]),
    test_share=st.sampled_from([0.05, 0.1, 0.3, 0.45]),
    held_out_users=st.sampled_from([0.0, 0.3, 0.9]),
    seed=st.integers(0, 3),
)


def arrays(users):
    return np.cumsum([0, *map(len, users)]), np.array([t for user in users for t in user], np.int64)


def unpacked(cut, size):
    """The rows of packed windows, in numpy, and the same from jax."""
    starts, lengths = pack(cut, size)
    found = spread(starts, lengths, size)
    for some, others in zip(found, spread(starts, lengths, size, jnp), strict=True):
        np.testing.assert_array_equal(some, others)
    return found


def pairs(ranges):
    """Every pair of neighbours in each range [start, stop), with how often it occurs."""
    return Counter((e, e + 1) for start, stop in ranges for e in range(start, stop - 1))


@given(timelines, configs)
def test_leave_one_out_asks_for_the_last_event_and_by_time_for_the_first_after_a_cut(users, config):
    offsets, times = arrays(users)
    found = split(config.model_copy(update={"held_out_users": 0.0}), offsets, times, times)
    early, late = np.quantile(times, [1 - 2 * config.test_share, 1 - config.test_share])
    train, validation, test = [], [], []
    for start, stop in pairwise(offsets):
        events = list(range(start, stop))
        if config.protocol == "stable_leave_one_out":
            held = 2 if len(events) >= 3 else 0
            train += events[: len(events) - held]
            validation += events[-2:-1] if held else []
            test += events[-1:] if held else []
        else:
            before = [e for e in events if times[e] < early]
            between = [e for e in events if early <= times[e] < late]
            after = [e for e in events if times[e] >= late]
            train += before
            validation += between[:1] if before else []
            test += after[:1] if before or between else []
    trained = [e for a, b in zip(offsets, found.train_stop, strict=False) for e in range(a, b)]
    assert trained == train
    assert found.validation.tolist() == validation
    assert found.test.tolist() == test
    assert not len(found.cold)


@given(timelines, configs)
def test_held_out_users_are_in_no_training_event_and_in_no_target_but_the_cold(users, config):
    offsets, times = arrays(users)
    found = split(config, offsets, times, times)
    whole = split(config.model_copy(update={"held_out_users": 0.0}), offsets, times, times)
    out = set(np.flatnonzero(found.train_stop != whole.train_stop).tolist())
    out |= set(user_of(found.cold, offsets).tolist())
    assert len(out) <= round(config.held_out_users * len(users))
    for user in out:
        assert found.train_stop[user] == offsets[user]
    for targets in (
        training_targets(found.train_first, found.train_stop, offsets),
        found.validation,
        found.test,
    ):
        assert not out & set(user_of(targets, offsets).tolist())
    assert sorted([*found.test, *found.cold]) == whole.test.tolist()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_share_of_held_out_users_is_met_by_the_seed_alone(share):
    offsets, times = np.arange(0, 401, 4), np.arange(400)
    cold = [
        split(DataConfig(held_out_users=share, seed=seed), offsets, times, times).cold.tolist()
        for seed in (0, 0, 1)
    ]
    assert len(cold[0]) == 100 * share
    assert cold[0] == cold[1] != cold[2]


@given(timelines, configs, st.sampled_from([0.2, 0.5, 0.9]))
def test_targets_of_held_out_items_are_set_apart_and_nothing_else_changes(users, config, share):
    offsets, times = arrays(users)
    item = times % 7 + 2
    held = split(config.model_copy(update={"held_out_items": share}), offsets, times, item)
    whole = split(config, offsets, times, item)
    assert not len(whole.new_items) and not whole.held_out.any()
    out = set(item[held.held_out].tolist())
    assert len(out) == round(share * len(set(item.tolist())))
    assert held.held_out.tolist() == [i in out for i in item.tolist()]
    np.testing.assert_array_equal(held.train_stop, whole.train_stop)
    new = []
    for name in ("validation", "test", "cold"):
        known = [e for e in getattr(whole, name).tolist() if item[e] not in out]
        assert getattr(held, name).tolist() == known
        new += [e for e in getattr(whole, name).tolist() if item[e] in out]
    assert held.new_items.tolist() == sorted(new)


@given(timelines, configs, st.integers(1, 6), st.integers(2, 6))
def test_no_example_sees_its_target_or_later_and_no_target_of_a_test_is_trained(
    users, config, history, window
):
    offsets, times = arrays(users)
    found = split(config, offsets, times, times)
    training = training_targets(found.train_first, found.train_stop, offsets)
    asked = np.concatenate([training, found.validation, found.test, found.cold])
    for target, seen in zip(asked, histories(asked, offsets, history), strict=True):
        seen = seen[seen >= 0]
        assert seen.size
        assert (seen < target).all()
        assert (times[seen] <= times[target]).all()
        assert len(set(user_of(np.append(seen, target), offsets).tolist())) == 1
    held = {*found.validation.tolist(), *found.test.tolist(), *found.cold.tolist()}
    events = unpacked(windows(offsets[:-1], found.train_stop, window), window)[0]
    assert not held & set(training.tolist())
    assert not held & set(events.ravel().tolist())
    assert not set(found.validation.tolist()) & set(found.test.tolist())
    for target in held:  # nor is anything trained on that comes after it
        (user,) = user_of(np.array([target]), offsets)
        assert found.train_stop[user] <= target


@given(timelines, configs)
def test_by_time_trains_on_nothing_as_late_as_any_test_target(users, config):
    offsets, times = arrays(users)
    config = config.model_copy(update={"protocol": "by_time"})
    found = split(config, offsets, times, times)
    trained = [e for a, b in zip(offsets, found.train_stop, strict=False) for e in range(a, b)]
    asked = times[np.concatenate([found.test, found.cold])]
    assert not trained or not len(asked) or times[trained].max() < asked.min()


@given(timelines, configs)
def test_training_targets_are_the_training_events_with_one_before_them(users, config):
    offsets, times = arrays(users)
    found = split(config, offsets, times, times)
    ranges = zip(offsets.tolist(), found.train_stop.tolist(), strict=False)
    assert training_targets(found.train_first, found.train_stop, offsets).tolist() == [
        e for start, stop in ranges for e in range(start + 1, stop)
    ]


@given(timelines, st.integers(1, 6))
def test_a_history_is_the_last_events_before_its_target(users, size):
    offsets, times = arrays(users)
    targets = np.arange(len(times))
    for target, row in zip(targets, histories(targets, offsets, size), strict=True):
        (user,) = user_of(np.array([target]), offsets)
        before = list(range(offsets[user], target))[-size:]
        assert row.tolist() == before + [-1] * (size - len(before))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 10**6))
def test_a_thinned_history_is_a_part_of_it_in_order(lengths, seed):
    events = np.full((len(lengths), 12), -1)
    for row, length in zip(events, lengths, strict=True):
        row[:length] = 100 + np.arange(length)
    seeds = seed + np.arange(len(lengths))
    thin = thinned(events, 0.5, seeds)
    np.testing.assert_array_equal(thin, thinned(events, 0.5, seeds))
    for own, row in zip(events, thin, strict=True):
        left, all_there = row[row >= 0], own[own >= 0]
        assert (row[len(left) :] == -1).all()
        assert (np.diff(left) > 0).all() and set(left) <= set(all_there)
        assert len(left) >= len(all_there) - len(all_there) // 2 - 1
        assert len(all_there) > 2 or len(left) == len(all_there)


def test_one_of_eleven_histories_stays_whole():
    events = np.tile(np.arange(8), (2200, 1))
    left = (thinned(events, 0.5, np.arange(2200)) >= 0).sum(1)
    assert abs((left == 8).mean() - 1 / 11) < 0.02
    assert set(left[left < 8]) == {4, 5, 6, 7}


@given(timelines, st.integers(2, 7))
def test_each_pair_of_neighbours_lies_in_exactly_one_window(users, size):
    offsets, _ = arrays(users)
    cut = windows(offsets[:-1], offsets[1:], size)
    lengths = cut[:, 1] - cut[:, 0]
    assert ((lengths >= 2) & (lengths <= size)).all()
    whole = np.stack([offsets[:-1], offsets[1:]], axis=1)
    assert pairs(cut.tolist()) == pairs(whole.tolist())
    ends = {stop for start, stop in pairwise(offsets) if stop - start >= 2}
    assert ends <= set(cut[:, 1].tolist())  # short windows are the oldest ones


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(2, 7)), max_size=25), st.integers(7, 12))
def test_packed_rows_hold_each_window_once_side_by_side(starts_and_lengths, size):
    cut = np.array([(a, a + n) for a, n in starts_and_lengths], np.int64).reshape(-1, 2)
    events, segments = unpacked(cut, size)
    assert events.shape == segments.shape == (len(events), size)
    found = []
    for row, numbers in zip(events, segments, strict=True):
        count = numbers.max()
        assert (np.diff(numbers[numbers > 0]) >= 0).all()  # one window after the other
        assert set(numbers.tolist()) - {0} == set(range(1, count + 1))
        assert not (numbers[np.argmin(numbers) :].any() and (numbers == 0).any())
        assert ((row == -1) == (numbers == 0)).all()
        for number in range(1, count + 1):
            mine = row[numbers == number]
            assert (np.diff(mine) == 1).all()
            found.append((mine[0], mine[-1] + 1))
    assert sorted(found) == sorted(map(tuple, cut.tolist()))


def test_packing_leaves_little_room():
    lengths = np.random.default_rng(0).integers(2, 51, 400)
    events, _ = unpacked(np.stack([np.zeros_like(lengths), lengths], axis=1), 50)
    assert (events >= 0).mean() > 0.95
