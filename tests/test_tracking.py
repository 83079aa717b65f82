"""Metrics read as one run, whatever happened to the process that wrote them."""

import json
import os
import resource
import struct
import subprocess
import sys
from contextlib import contextmanager

import jax.numpy as jnp
import pytest

from user_llm.training.tracking import Tracker, read


def test_reads_back_what_was_logged(tmp_path):
    with Tracker(tmp_path, total=4) as tracker:
        tracker.log(2, {"loss": jnp.float32(0.5), "events_per_second": 1234.5})
        tracker.log(2, {"validation/recall_at_10": 0.25})
        tracker.log(4, {"loss": 0.25})
    rows = read(tmp_path)
    seconds = [row.pop("seconds") for row in rows]
    assert seconds == sorted(seconds)
    assert rows == [
        {"step": 2, "loss": 0.5, "events_per_second": 1234.5},
        {"step": 2, "validation/recall_at_10": 0.25},
        {"step": 4, "loss": 0.25},
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    with Tracker(tmp_path, total=2) as tracker:
        tracker.log(1, {"loss": 1.0})
        assert read(tmp_path)[0]["loss"] == 1.0


def test_a_resumed_run_reads_as_one(tmp_path):
    with Tracker(tmp_path, total=4) as tracker:
        for step in range(1, 5):
            tracker.log(step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) | {"seconds": 100.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    with Tracker(tmp_path, total=4, step=2) as tracker:
        assert [row["step"] for row in read(tmp_path)] == [1, 2]
        tracker.log(3, {"loss": 30.0})
    rows = read(tmp_path)
    assert [row["loss"] for row in rows] == [1.0, 2.0, 30.0]
    assert 100.0 <= rows[-1]["seconds"] < 110.0


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.5}\n{"step": 2, "sec')
    assert read(tmp_path) == [{"step": 1, "seconds": 0.5}]


def test_names_the_line_that_is_not_json(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        read(tmp_path)


def events_of(folder):
    """The events in TensorBoard's files: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_ctime_ns):
        data = path.read_bytes()
        while len(data) >= 12 and len(data) >= 16 + struct.unpack_from("<Q", data)[0]:
            (length,) = struct.unpack_from("<Q", data)
            event, (checksum,) = data[12 : 12 + length], struct.unpack_from("<I", data, 12 + length)
            assert checksum == masked_crc32c(event)
            yield Event.FromString(event)
            data = data[16 + length :]


def shown(folder):
    """What TensorBoard would show, by step: it purges from the step of a session on."""
    found = {}
    for event in events_of(folder):
        if event.HasField("session_log"):
            found = {step: values for step, values in found.items() if step < event.step}
        for value in event.summary.value:
            found.setdefault(event.step, {})[value.tag] = value.simple_value
    return found


@contextmanager
def full_disk(room):
    """No file may grow beyond so many bytes, and the system says so; no need of a real disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensorboard_gets_the_same_and_forgets_the_abandoned(tmp_path):
    with Tracker(tmp_path, total=4) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": float(step)})
    with Tracker(tmp_path, total=4, step=2) as tracker:
        tracker.log(3, {"loss": 30.0})
    assert shown(tmp_path / "tensorboard") == {step: {"loss": step} for step in (1, 2)} | {
        3: {"loss": 30.0}
    }


def test_logging_imports_no_torch_and_leaves_it_to_others(tmp_path):
    told = (
        "import sys, pathlib\n"
        "from user_llm.training.tracking import Tracker\n"
        f"with Tracker(pathlib.Path({str(tmp_path)!r}), total=1) as tracker:\n"
        "    tracker.log(1, {'loss': 1.0})\n"
        "assert 'torch' not in sys.modules\n"
        "import torch"
    )
    subprocess.run([sys.executable, "-c", told], check=True)
    assert shown(tmp_path / "tensorboard") == {1: {"loss": 1.0}}


def test_a_full_disk_is_told_and_what_is_logged_later_is_shown(tmp_path, caplog):
    values = {f"figure_{n}": float(n) for n in range(20)}  # more at once than a queue would hold
    with Tracker(tmp_path, total=9) as tracker:
        tracker.log(1, values)
        with full_disk(room=1024):
            for step in range(2, 8):
                tracker.log(step, values)
        tracker.log(8, values)
        with full_disk(room=1024):
            tracker.log(9, values)
    assert "step 2 could not be logged" in caplog.text
    assert "File too large" in caplog.text
    assert {row["step"] for row in read(tmp_path)} >= {1, 8}
    found = shown(tmp_path / "tensorboard")
    assert found[1] == found[8] == values


def test_the_bar_shows_loss_and_rates_sparingly_in_a_log(tmp_path, capsys):
    with Tracker(tmp_path, total=100, step=40, name="pretrain") as tracker:
        for step in range(50, 101, 10):
            tracker.log(step, {"loss": 0.123456, "grad_norm": 7.0, "tokens_per_second": 45_600.0})
    lines = [line for line in capsys.readouterr().err.split("\r") if line]
    assert lines[0].startswith("pretrain:  40%")
    assert len(lines) == 2
    assert "100/100" in lines[-1] and "loss=0.1235" in lines[-1] and "tokens/s=45.6k" in lines[-1]
    assert "grad_norm" not in lines[-1]


def test_an_environment_without_bars_has_none_of_ours(tmp_path):
    code = (
        "import sys; from pathlib import Path; from user_llm.training.tracking import Tracker\n"
        "with Tracker(Path(sys.argv[1]), total=1) as tracker: tracker.log(1, {'loss': 1.0})"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"TQDM_DISABLE": "1"}, check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert len(read(tmp_path)) == 1


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with Tracker(tmp_path, total=4) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""
