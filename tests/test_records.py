"""Results files that only grow or are replaced whole, and commits told from real checkouts."""

import json
import os
import re
import subprocess

import jax
import pytest

from user_llm.evaluation import records

RECORD = records.Record(
    run="quickstart",
    config="quickstart.py",
    command="user-llm run configs/quickstart.py --record",
    commit="0" * 40,
    date="2026-01-31",
    device="1 x cpu",
    seconds=61.5,
    seed=0,
    dataset="world",
    protocol="stable_leave_one_out",
    metrics={"test/next_item/recall_at_10": 0.29},
)


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_the_file_is_a_list_of_the_documented_fields(tmp_path):
    path = records.add(RECORD, tmp_path)
    assert path == tmp_path / "results.json"
    assert json.loads(path.read_text()) == [RECORD.model_dump()]
    assert list(RECORD.model_dump()) == [
        *("run", "config", "command", "commit", "date", "device", "seconds", "seed", "dataset"),
        *("protocol", "metrics"),
    ]


def test_the_same_run_config_and_seed_is_replaced_in_its_place(tmp_path):
    other = RECORD.model_copy(update={"seed": 1})
    again = RECORD.model_copy(update={"seconds": 60.0})
    for record in (RECORD, other, again):
        records.add(record, tmp_path)
    assert records.read(tmp_path) == [again, other]


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('[{"run": "x", "colour": 1}]')
    with pytest.raises(ValueError, match=r"results\.json is not a list of records"):
        records.add(RECORD, tmp_path)
    assert path.read_text() == '[{"run": "x", "colour": 1}]'


def test_a_metric_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        records.Record(**RECORD.model_dump() | {"metrics": {"test/loss": float("nan")}})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = records.add(RECORD, tmp_path)
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        records.add(RECORD.model_copy(update={"seed": 1}), tmp_path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_commit_names_the_head_and_says_whether_sources_differ(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    package = checkout / "package"
    assert records.commit(package) == head

    records.add(RECORD, checkout)  # results are no sources
    assert records.commit(package) == head
    (checkout / "other.py").write_text("")
    assert records.commit(package) == head + "+dirty"
    (checkout / "other.py").unlink()
    (package / "code.py").write_text("x = 2\n")
    assert records.commit(package) == head + "+dirty"


def test_commit_is_unknown_for_a_package_that_the_checkout_around_it_does_not_track(
    checkout, tmp_path_factory
):
    installed = checkout / "site-packages" / "user_llm"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("")
    assert records.commit(installed) == "unknown"
    assert records.commit(tmp_path_factory.mktemp("no_checkout")) == "unknown"


def test_provenance_says_commit_device_and_date():
    found = records.provenance()
    assert set(found) == {"commit", "device", "date"}
    assert found["device"].startswith(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    if jax.default_backend() == "cpu":
        assert re.search(r"\(.+, \d+ cores\)$", found["device"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
