"""A sweep runs what is not finished, in order, and tells of all in one tidy file."""

import csv
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from runs_made import EXPERIMENT

from user_llm import cli, sweep
from user_llm.config import Experiment, FigureConfig, Sweep
from user_llm.evaluation import comparison
from user_llm.training.loop import PREEMPTED


def named(name, seed=0, **system):
    changed = EXPERIMENT.system.model_copy(update=system)
    return EXPERIMENT.model_copy(update={"name": name, "seed": seed, "system": changed})


TABLE = Sweep(
    experiments=(
        *(named("a"), named("a", 1)),
        *(named("b", text_history=10), named("b_soft", text_history=50)),
    ),
    figures=(
        FigureConfig(title="With more words", against="system.text_history", lines={"words": "b*"}),
    ),
)


@pytest.fixture
def ran(monkeypatch):
    """The runs that a sweep starts; each is there at once, but those that are to fail."""
    started, codes = [], {}

    def child(command):
        folder = Path(command[-1])
        started.append("/".join(folder.parts[-2:]))
        if code := codes.get(started[-1], 0):
            return code
        seed = Experiment.model_validate_json((folder / "config.json").read_text()).seed
        row = {"system": "user_llm", "metrics": {"test/next_item/recall_at_10": 0.1 + seed}}
        judged = {"rows": [row], "commit": "c", "date": "d", "device": "cpu"}
        (folder / "evaluation.json").write_text(json.dumps(judged))
        (folder / "report.html").write_text("")
        return 0

    monkeypatch.setattr(sweep, "child", child)
    return started, codes


def table(folder):
    return list(csv.DictReader((folder / comparison.RESULTS).read_text().splitlines()))


def test_experiments_run_in_order_and_once(ran, tmp_path):
    started, _ = ran
    assert sweep.run(TABLE, tmp_path) == []
    assert started == ["a/seed-0", "a/seed-1", "b/seed-0", "b_soft/seed-0"]
    assert sweep.run(TABLE, tmp_path) == []
    assert len(started) == 4
    rows = table(tmp_path)
    assert [(row["experiment"], row["seed"]) for row in rows] == [
        ("a", "0"),
        ("a", "1"),
        ("b", "0"),
        ("b_soft", "0"),
    ]
    assert [row["system.text_history"] for row in rows] == ["0", "0", "10", "50"]
    assert [float(row["value"]) for row in rows] == [0.1, 1.1, 0.1, 0.1]
    assert "system.fusion" not in rows[0]  # in which none differs


def test_costs_stand_beside_the_metrics(ran, tmp_path):
    sweep.run(TABLE, tmp_path)
    path = tmp_path / "b" / "seed-0" / "evaluation.json"
    judged = json.loads(path.read_text())
    judged["rows"][0]["cost"] = {"cost/gflop": 2.5}
    path.write_text(json.dumps(judged))
    sweep.write(tmp_path, TABLE)
    costs = [row for row in table(tmp_path) if row["metric"] == "cost/gflop"]
    assert [(row["experiment"], float(row["value"])) for row in costs] == [("b", 2.5)]


def test_a_failure_is_named_and_stops_no_other(ran, tmp_path):
    started, codes = ran
    codes["a/seed-1"] = 2
    assert sweep.run(TABLE, tmp_path) == ["a/seed-1"]
    assert len(started) == 4 and len(table(tmp_path)) == 3
    codes.clear()
    assert sweep.run(TABLE, tmp_path) == []
    assert started[4:] == ["a/seed-1"] and len(table(tmp_path)) == 4


def test_a_preempted_run_preempts_the_sweep(ran, tmp_path):
    started, codes = ran
    codes["a/seed-1"] = PREEMPTED
    with pytest.raises(SystemExit, match=str(PREEMPTED)):
        sweep.run(TABLE, tmp_path)
    assert started == ["a/seed-0", "a/seed-1"] and len(table(tmp_path)) == 1


def test_only_some_are_run_and_the_file_keeps_the_others(ran, tmp_path):
    started, _ = ran
    sweep.run(TABLE, tmp_path, "b*")
    sweep.run(TABLE, tmp_path, "a")
    assert started == ["b/seed-0", "b_soft/seed-0", "a/seed-0", "a/seed-1"]
    assert len(table(tmp_path)) == 4
    with pytest.raises(ValueError, match="fits 'c'; there are a, b, b_soft"):
        sweep.run(TABLE, tmp_path, "c")


def test_what_would_collide_is_refused_before_anything_runs(ran, tmp_path):
    with pytest.raises(ValueError, match="several experiments a with seed 0; rename them"):
        Sweep(experiments=(*TABLE.experiments, named("a", text_history=3)))
    sweep.run(TABLE, tmp_path, "a")
    other = Sweep(experiments=(named("z"), named("a", text_history=3)))
    with pytest.raises(ValueError, match="another experiment .system.text_history: 0 there, 3 now"):
        sweep.run(other, tmp_path)
    assert ran[0] == ["a/seed-0", "a/seed-1"]


def test_a_line_without_experiments_is_refused():
    figure = FigureConfig(title="None", against="seed", lines={"mine": "c*"})
    with pytest.raises(ValueError, match="line 'mine' of figure 'None': no experiment's name"):
        Sweep(experiments=TABLE.experiments, figures=(figure,))


def test_a_figure_against_what_is_no_number_is_refused():
    for against in ("encoder.kind", "finetune.historie"):
        figure = FigureConfig(title="None", against=against, lines={"mine": "b"})
        with pytest.raises(ValueError, match=f"drawn against '{against}', which is no number"):
            Sweep(experiments=TABLE.experiments, figures=(figure,))


@pytest.mark.parametrize("noticed", [True, False], ids=["in_training", "elsewhere"])
def test_a_sigterm_reaches_the_process_under_way_and_ends_the_sweep(noticed):
    program = "import signal, sys, time\n"
    if noticed:
        program += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\n"
    program += "time.sleep(60)"
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(2, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    assert sweep.child([sys.executable, "-c", program]) == 42
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"has no sweep\(\)"),
        ("def sweep(): return [1]", "return a Sweep"),
    ],
)
def test_a_file_without_experiments_is_refused(tmp_path, text, error):
    file = tmp_path / "table.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=error):
        cli.load_sweep(str(file))


def test_a_run_goes_on_from_its_folder(ran, tmp_path):
    sweep.run(TABLE, tmp_path, "b")
    assert cli.load_config(str(tmp_path / "b" / "seed-0")) == TABLE.experiments[2]


def test_the_command_runs_a_file_and_says_what_failed(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from test_sweep import TABLE\ndef sweep(): return TABLE\n")
    assert cli.main(["sweep", "mine.py", "--record"]) == 0
    said = capsys.readouterr().out
    assert "runs/mine/results.csv" in said and "runs/mine/report.html" in said
    page = Path("runs/mine/report.html").read_text()
    assert "With more words" in page and ">b soft<" in page
    assert "next item, recall@10" in Path("runs/mine/figures/1.svg").read_text()
    kept = json.loads(Path("results.json").read_text())
    assert {(record["run"], record["seed"]) for record in kept} == {
        (f"{x.name}/user_llm", x.seed) for x in TABLE.experiments
    }
    for record in kept:
        name, _, _ = record["run"].partition("/")
        assert record["command"] == f"user-llm sweep mine.py --only {name}"
    assert cli.main(["report", "mine.py"]) == 0  # of what was recorded, without the runs
    assert table(tmp_path / "runs/mine_recorded") == table(tmp_path / "runs/mine")
    assert "With more words" in Path("runs/mine_recorded/report.html").read_text()
    assert cli.main(["report", "mine.py", "--run-dir", "runs/mine"]) == 2
    assert "runs/mine holds runs" in capsys.readouterr().err
    ran[1]["b/seed-0"] = 1
    (tmp_path / "runs/mine/b/seed-0/report.html").unlink()
    assert cli.main(["sweep", "mine.py"]) == 2
    assert "failed: b/seed-0" in capsys.readouterr().err


def test_a_child_finds_the_modules_that_its_parent_does(tmp_path, monkeypatch):
    """Such as streams beside the sweep's file; what is installed still comes first."""
    (tmp_path / "beside_the_sweep.py").write_text("")
    (tmp_path / "json.py").write_text("raise ImportError('not the installed one')")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert sweep.child([sys.executable, "-c", "import beside_the_sweep, json"]) == 0
