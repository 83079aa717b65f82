"""DPL from a built data set to reviews, by a real model behind a real endpoint that misbehaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import chat_server
import numpy as np
import pytest
import timelines_made
from encoder_made import write_encoder
from hypothesis import given, settings
from test_reviewers import before, made, timelines

from user_llm.cli import main
from user_llm.data import builders
from user_llm.data.dataset import load
from user_llm.inference.dpl import LATER, DPLConfig, held_out, plan, script
from user_llm.inference.dpl_prompts import Prompts
from user_llm.metrics import TextOverlap

USERS = 4
LOOSE = DPLConfig(past=3, others=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return builders.build("world", source=None, data_dir=folder, users=24)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, world):
    words = sorted({word for text in load(world).reviews for word in re.findall("[a-z]+", text)})
    return write_encoder(tmp_path_factory.mktemp("encoder"), words[:90])


@pytest.fixture(scope="module")
def undisturbed(chat_model, world, encoder, tmp_path_factory):
    """A run during which nothing happened: its folder, and the requests it made."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with chat_server.serve(chat_model) as server:
        assert main(command(server, world, encoder, out)) == 0
        return out, server.bodies


def command(server, world, encoder, out, *flags):
    asked = {"url": server.url, "model": "tiny", "out": out, "users": USERS, "encoder": encoder}
    given = [x for name, value in asked.items() for x in (f"--{name}", str(value))]
    return ["dpl", str(world), *given, "--judge-model", "judge", *flags]


def prepared(undisturbed, out):
    """A folder in which only the vectors are there already."""
    shutil.copytree(undisturbed[0] / "vectors", out / "vectors")
    return out


def rows(out):
    return [json.loads(line) for line in (out / "reviews.jsonl").read_text().splitlines()]


def report(out):
    return json.loads((out / "report.json").read_text())


def kept(out):
    return len(list((out / "cache").glob("*/*.json")))


def pretend(texts):
    """Vectors that anything else in a text changes."""
    seeds = [list(text.encode()) for text in texts]
    rows = [np.random.default_rng(seed).normal(size=4) for seed in seeds]
    return np.array(rows, np.float32).reshape(len(texts), 4)


def planned(data, config=LOOSE):
    try:
        events = held_out(data)
    except ValueError:
        return []
    return plan(data, events, pretend, config)


@given(timelines)
@settings(max_examples=50)
def test_nothing_is_read_that_was_not_there_yet(drawn):
    data = made(drawn)
    for target in planned(data):
        own = range(*data.offsets[np.searchsorted(data.offsets, target.event, "right") - 1 :][:2])
        assert target.event == max(event for event in own if data.reviews[event])
        earlier = [event for event in own if data.times[event] < data.times[target.event]]
        past = [event for event in earlier if data.reviews[event]]
        shared = [event for event in past if before(data, event)]
        assert len(target.past) == min(3, len(past)) and set(target.past) <= set(past)
        assert {one.event for one in target.compared} <= set(shared)
        assert len(target.compared) <= 3
        for one in target.compared:
            assert 0 < len(one.others) <= 4
            assert set(one.others) <= set(before(data, one.event))


@given(timelines)
@settings(max_examples=50)
def test_what_is_written_later_changes_no_prompt(drawn):
    data = made(drawn)
    for target in planned(data):
        now = data.times[target.event]
        told = [
            f"other {event} words" if time >= now and text else text
            for event, (time, text) in enumerate(zip(data.times, data.reviews, strict=True))
        ]
        other = replace(data, reviews=told)
        (again,) = plan(other, [target.event], pretend, LOOSE)
        assert script(again, Prompts(other)) == script(target, Prompts(data))


def test_the_past_is_chosen_by_what_it_is_about():
    data = timelines_made.dataset([[0, 1, 2, 3, 4, 5, 6, 7], [8, 4]])
    told = list(data.items.texts)
    told[2 + 1] = told[2 + 4] = told[2 + 7] = "A heist in the harbour."
    data = replace(
        data,
        items=replace(data.items, texts=tuple(told)),
        reviews=[f"note {event}" for event in range(10)],
    )
    target, _ = plan(data, [7, 9], pretend, DPLConfig(past=3))
    assert set(target.past[-2:]) == {1, 4}  # the most like it last
    assert target.compared == () and target.calls == 2


def test_users_are_a_seeded_sample_and_need_a_past():
    data = timelines_made.dataset([[0, 1, 2], [3, 4], [1], [5, 1, 2]])
    data = replace(data, reviews=["a", "b", "", "a", "b", "a", "a", "b", "c"])
    assert held_out(data) == [1, 4, 8]
    samples = [held_out(data, 2, seed) for seed in range(20)]
    assert samples == [held_out(data, 2, seed) for seed in range(20)]
    assert {tuple(one) for one in samples} == {(1, 4), (1, 8), (4, 8)}
    assert held_out(replace(data, times=np.array([0, 0, 1, 5, 5, 0, 0, 1, 1]))) == [8]
    with pytest.raises(ValueError, match="no user of the data set has a review and one before it"):
        held_out(replace(data, reviews=None))


def test_prompts_tell_titles_and_ratings_and_cut_what_is_long():
    data = timelines_made.dataset([[0, 1], [0]])
    data = replace(data, reviews=["Great\nI sang.\nTwice.", "x" * 50, "Not mine."])
    plain, titled = Prompts(data), Prompts(data, titled=True, characters=20)
    assert "Rating: 1\nGreat\nI sang." in plain.differences(0, [2])
    asked = titled.differences(0, [2])
    assert "Film 0 of many\nDescription: The plot of 0." in asked
    assert "Rating: 1\nTitle: Great\nI sang.\nTwice." in asked
    assert "1. Rating: 3\nNot mine." in asked
    assert titled.text(0) == "I sang.\nTwice." and titled.text(2) == "Not mine."
    assert titled.about(0) == "Great Film 0 of many The plot of 0."
    assert plain.about(0) == "Film 0 of many The plot of 0."
    assert "Rating: 2\n" + "x" * 20 + "…\n" in titled.profile([1], {})
    last = titled.review(0, [1], "Sings.")
    assert "Title: Great" in last and "Sings." in last and "I sang" not in last
    unrated = Prompts(replace(data, ratings=None))
    assert "Rating" not in unrated.review(0, [1], "Sings.")


def test_reviews_are_written_judged_and_paid_for_once(
    server, world, encoder, undisturbed, tmp_path, capsys
):
    out, bodies = undisturbed
    found, told, data = rows(out), report(out), load(world)
    assert [one["user"] for one in found] == [
        data.users[np.searchsorted(data.offsets, event, "right") - 1]
        for event in held_out(data, USERS, 42)
    ]
    for one, event in zip(found, held_out(data, USERS, 42), strict=True):
        assert one["item"] == data.items.ids[data.item[event]]
        assert one["real"] == data.reviews[event]
        assert one["generated"] and "[Review]:" not in one["generated"]
        assert one["summary"] and "[Summary]:" not in one["summary"]
        assert all(said["writing"] and said["semantic"] for said in one["differences"])
        assert 0 <= one["score"] <= 1
    overlap = TextOverlap.from_texts([r["generated"] for r in found], [r["real"] for r in found])
    wanted = overlap.compute() | {"judge": sum(one["score"] for one in found) / len(found)}
    assert told["metrics"] == {f"test/review_generation/{k}": v for k, v in wanted.items()}

    writer, judge = told["answers"]["writer"], told["answers"]["judge"]
    compared = sum(len(one["differences"]) for one in found)
    assert compared > USERS and len(bodies) == writer["calls"] + judge["calls"] == kept(out)
    assert (writer["calls"], judge["calls"]) == (compared + 2 * USERS, USERS)
    assert writer["completion_tokens"] == (3 * compared + 2 * USERS) * chat_server.WRITTEN
    assert {body["temperature"] for body in bodies if body["model"] == "judge"} == {0.0}
    assert told["targets"] == told["reviews"] == USERS and told["failed"] == []

    again = tmp_path / "again"
    shutil.copytree(out, again)
    capsys.readouterr()
    assert main(command(server, world, encoder, again)) == 0
    assert not server.bodies
    assert rows(again) == found
    counts = report(again)["answers"]["writer"]
    assert (counts["calls"], counts["cached"]) == (0, writer["calls"])
    assert counts["cached_completion_tokens"] == writer["completion_tokens"]
    shown = capsys.readouterr().out
    assert f"{USERS} reviews of {USERS}" in shown and "rouge_l" in shown and "judge" in shown


def test_a_dry_run_asks_nothing_and_tells_what_it_would(
    server, world, encoder, undisturbed, tmp_path, capsys
):
    out = prepared(undisturbed, tmp_path / "out")
    assert main(command(server, world, encoder, out, "--dry-run")) == 0
    assert not server.bodies and [path.name for path in out.iterdir()] == ["vectors"]
    shown = capsys.readouterr().out
    assert f"{USERS} targets, {len(undisturbed[1])} calls if every answer is as asked" in shown
    # Of the first target the comparisons are shown as they are asked, the rest with a blank.
    first = rows(undisturbed[0])[0]
    whole = [p for body in undisturbed[1] if (p := chat_server.asked(body)) in shown]
    assert len(whole) == len(first["differences"])
    assert f"author writes:\n{LATER}" in shown and f"emotional: {LATER}" in shown


def test_an_endpoint_that_stumbles_changes_no_result(server, world, encoder, undisturbed, tmp_path):
    out = prepared(undisturbed, tmp_path / "out")
    kinds = ["500", "", "429", "", "drop", "", ""]
    # Each question at most twice, so that its retries are never used up.
    server.faults = lambda nth, body: kinds[nth % 7] if server.bodies.count(body) <= 2 else ""
    assert main(command(server, world, encoder, out)) == 0
    assert rows(out) == rows(undisturbed[0])
    assert server.distinct == {json.dumps(body, sort_keys=True) for body in undisturbed[1]}
    assert len(server.bodies) > len(undisturbed[1]) == kept(out)


@pytest.mark.slow
def test_what_fails_is_named_and_left_for_the_next_run(
    server, world, encoder, undisturbed, tmp_path, capsys
):
    out, wanted = prepared(undisturbed, tmp_path / "out"), rows(undisturbed[0])
    lost, unjudged = wanted[1], wanted[2]
    ill = lost["summary"], unjudged["generated"]

    def faults(nth, body):
        if body["model"] == "judge":
            return "500" if ill[1] in chat_server.asked(body) else ""
        return "slow" if f"\n{ill[0]}\n" in chat_server.asked(body) else ""

    server.faults = faults
    flags = ("--timeout", "8", "--retries", "0", "--concurrency", "2")
    assert main(command(server, world, encoder, out, *flags)) == 2
    told = capsys.readouterr().err
    assert f"error: 2 of {USERS} targets failed; the same command goes on with them" in told
    assert f"  {lost['user']} on {lost['item']}: APITimeoutError: Request timed out." in told
    assert f"  {unjudged['user']} on {unjudged['item']}: InternalServerError: Error code" in told
    done = [{k: v for k, v in one.items() if k != "score" or one != unjudged} for one in wanted]
    assert rows(out) == [one for one in done if one["user"] != lost["user"]]
    assert [one["user"] for one in report(out)["failed"]] == [lost["user"], unjudged["user"]]

    paid = kept(out)
    server.bodies.clear()
    server.faults = chat_server.first()
    assert main(command(server, world, encoder, out)) == 0
    assert rows(out) == wanted
    # The review that was lost, its score, and the other score.
    assert len(server.bodies) == len(undisturbed[1]) - paid == 3


def test_differences_that_are_never_as_asked_are_left_out(
    server, world, encoder, undisturbed, tmp_path
):
    out = prepared(undisturbed, tmp_path / "out")
    asked = [body for body in undisturbed[1] if "response_format" in body]
    asked = [chat_server.asked(body) for body in asked if body["model"] == "tiny"]
    hopeless, clumsy, wordy = asked[0], asked[1], asked[2]

    def faults(nth, body):
        question, again = chat_server.asked(body), len(body["messages"]) > 1
        ill = {hopeless: "broken", clumsy: "" if again else "other", wordy: "fenced"}
        return ill.get(question, "")

    server.faults = faults
    assert main(command(server, world, encoder, out)) == 0
    counts = report(out)["answers"]["writer"]
    assert (counts["repaired"], counts["retried"], counts["given_up"]) == (1, 3, 1)
    told = sum(len(one["differences"]) for one in rows(out))
    assert told == sum(len(one["differences"]) for one in rows(undisturbed[0])) - 1
    assert report(out)["failed"] == []
    server.bodies.clear()
    assert main(command(server, world, encoder, out)) == 0 and not server.bodies
    again = report(out)["answers"]["writer"]
    assert [again[k] for k in ("repaired", "retried", "given_up")] == [1, 3, 1]


@pytest.mark.slow
def test_what_was_killed_goes_on_and_pays_for_nothing_twice(
    server, world, encoder, undisturbed, tmp_path
):
    out, total = prepared(undisturbed, tmp_path / "out"), len(undisturbed[1])
    server.delay = 0.1
    flags = command(server, world, encoder, out, "--concurrency", "2")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for share in (0.3, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-m", "user_llm.cli", *flags], env=environment, stderr=subprocess.PIPE
        )
        while process.poll() is None and kept(out) < share * total:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()[-3000:]
    paid, asked = kept(out), len(server.bodies)
    assert 0.6 * total <= paid < total and asked <= paid + 2 * 2  # what was under way is lost
    assert not (out / "reviews.jsonl").exists()
    time.sleep(0.5)  # until nothing of the killed is answered any more
    before_rerun = len(server.bodies)
    server.delay = 0.0
    assert main(flags) == 0
    assert len(server.bodies) - before_rerun == total - paid
    assert server.distinct == {json.dumps(body, sort_keys=True) for body in undisturbed[1]}
    assert rows(out) == rows(undisturbed[0])
    counts = report(out)["answers"]
    assert counts["writer"]["calls"] + counts["judge"]["calls"] == total - paid


def test_what_cannot_be_run_is_one_line_of_error(server, world, encoder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(server, tmp_path, encoder, out)) == 2
    assert "holds no built data set" in capsys.readouterr().err
    assert main(command(server, world, Path("no/such"), out)) == 2
    assert "neither a folder nor an installed package" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(command(server, world, encoder, out, "--user", "3"))
    assert stop.value.code == 2 and "--users" in capsys.readouterr().err
    assert main(command(server, world, encoder, out, "--judge-url", "localhost:8000/v1")) == 2
    assert "url" in capsys.readouterr().err
    assert not server.bodies


def test_help_lists_the_settings_with_their_defaults(world, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["dpl", str(world), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--url", "--model", "--out", "--users", "--judge-model", "--dry-run"):
        assert flag in shown
    assert "(default: 0.95)" in shown
