"""DPL's preprocessing, beside its rules said in plain loops."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_llm.config import DataConfig
from user_llm.data import builders
from user_llm.data.builders import dpl_benchmark
from user_llm.data.dataset import load
from user_llm.data.timelines import split, training_targets

SMALL = {"USERS": 2, "REVIEWS": (3, 6), "ASKED": 2, "PROFILES": 2, "PROFILE": 2}
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=60)


def by_loops(events):
    """The places of what is chosen of events (user, item) in order, by the rules in SMALL."""
    left = dict(enumerate(events))
    while True:
        items = Counter(item for _, item in left.values())
        kept = {i: e for i, e in left.items() if items[e[1]] >= SMALL["USERS"]}
        users = Counter(user for user, _ in kept.values())
        low, high = SMALL["REVIEWS"]
        kept = {i: e for i, e in kept.items() if low <= users[e[0]] <= high}
        if kept == left:
            break
        left = kept
    asked, profile = {}, {}
    for user in {user for user, _ in left.values()}:
        own = [i for i, e in left.items() if e[0] == user]
        asked |= dict.fromkeys(own[-SMALL["ASKED"] :], user)
        profile |= {i: left[i] for i in own[: -SMALL["ASKED"]]}
    while True:
        items = Counter(item for _, item in profile.values())
        kept = {i: e for i, e in profile.items() if items[e[1]] >= SMALL["PROFILES"]}
        users = Counter(user for user, _ in kept.values())
        kept = {i: e for i, e in kept.items() if users[e[0]] >= SMALL["PROFILE"]}
        if kept == profile:
            break
        profile = kept
    users = {user for user, _ in profile.values()}
    return sorted([*profile, *(i for i, user in asked.items() if user in users)])


@given(PAIRS)
def test_what_is_chosen_is_what_the_rules_leave(pairs):
    events = list(dict.fromkeys(pairs))
    user, item = np.array(events, np.int64).reshape(-1, 2).T
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(dpl_benchmark, name, value)
        found = np.flatnonzero(dpl_benchmark.chosen(user, item)).tolist()
    assert found == by_loops(events)


@given(PAIRS)
def test_of_what_repeats_the_first_stays(pairs):
    columns = np.array(pairs, np.int64).reshape(-1, 2).T
    found = np.flatnonzero(dpl_benchmark.once(*columns)).tolist()
    assert found == [i for i, pair in enumerate(pairs) if pair not in pairs[:i]]


def write(folder, users=9, each=20):
    """A release in which everyone reviews all items, and some reviews and items do not count."""
    folder.mkdir()
    rows = []
    for user in range(users):
        for item in range(each):
            text = f"User {user} of item {item}. " + "It was as one would expect of it. " * 8
            row = {"user_id": f"u{user}", "parent_asin": f"i{item:02d}", "rating": 4.0}
            row |= {"timestamp": 1000 * (1000 * item + user), "title": f"Of {item}", "text": text}
            rows.append(row)
    rows.append(rows[0] | {"timestamp": 10**9, "text": rows[0]["text"] + "Again."})  # once more
    rows.append(rows[1] | {"parent_asin": "i99", "timestamp": 2 * 10**9})  # of an item unknown
    rows.append(rows[2] | {"user_id": "short", "text": "Too short."})
    rows.append(rows[3] | {"user_id": "untitled", "title": ""})
    rows.append(rows[4] | {"user_id": "copy"})  # another's text
    items = [
        {"parent_asin": f"i{item:02d}", "title": f"Item {item}", "description": ["Long. " * 30]}
        for item in range(each)
    ]
    items.append({"parent_asin": "i99", "title": "Brief", "description": ["Short."]})
    for name, lines in (("Books.jsonl", rows), ("meta_Books.jsonl", items)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_release_gives_the_benchmark_and_its_last_ten_are_asked_for(tmp_path):
    source = write(tmp_path / "raw")
    folder = builders.build(
        "amazon_reviews", source=source, data_dir=tmp_path / "data", version="2023_dpl"
    )
    data = load(folder)
    assert data.users == tuple(f"u{user}" for user in range(9))
    assert np.diff(data.offsets).tolist() == [20] * 9
    assert data.review(0).startswith("Of 0\nUser 0 of item 0.")
    config = DataConfig(name="amazon_reviews", protocol="last_ten")
    found = split(config, data.offsets, data.times, data.item)
    assert found.test.tolist() == (data.offsets[1:] - 1).tolist()
    assert found.validation.tolist() == (data.offsets[1:] - 2).tolist()
    targets = training_targets(found.train_first, found.train_stop, data.offsets)
    assert targets.reshape(9, 8).tolist() == [
        list(range(stop - 10, stop - 2)) for stop in data.offsets[1:].tolist()
    ]


def test_a_release_of_which_nothing_is_left_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes none; are there users of 18 and more"):
        builders.build(
            "amazon_reviews",
            source=write(tmp_path / "raw", each=10),
            data_dir=tmp_path / "data",
            version="2023_dpl",
        )
