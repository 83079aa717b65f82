"""What experiments come to side by side, against means taken by hand."""

import csv
import struct
import sys
import xml.etree.ElementTree as ET
import zlib
from statistics import mean, stdev

import pytest
from runs_made import EXPERIMENT

from user_llm import commands
from user_llm.config import FigureConfig, Sweep
from user_llm.evaluation import charts, comparison, report
from user_llm.evaluation.rows import best

RECALL, PERPLEXITY = "test/next_item/recall_at_10", "test/text/perplexity"
FIGURES = (
    FigureConfig(
        title="By history", against="finetune.history", lines={"memory": "m_*", "text": "t_*"}
    ),
    FigureConfig(title="By perplexity", against=PERPLEXITY, lines={"all": "*"}, scale="log"),
    FigureConfig(title="Of nothing", against="cost/of_no_one", lines={"all": "*"}),
)
FOUND = {  # by experiment: history, and the recall and perplexity of each seed
    "m_50": (50, [0.2, 0.3, 0.4], [9.0, 11.0, 10.0]),
    "m_25": (25, [0.1], [8.0]),
    "t_25": (25, [0.15], [7.0]),
}


@pytest.fixture
def rows():
    told = []
    for name, (history, *values) in FOUND.items():
        for metric, by_seed in zip((RECALL, PERPLEXITY), values, strict=True):
            for seed, value in enumerate(by_seed):
                own = {"experiment": name, "seed": str(seed), "finetune.history": str(history)}
                own |= {"metric": metric, "commit": "c", "date": "d", "device": "cpu"}
                told.append(own | {"system": "user_llm", "value": str(value)})
                told.append(own | {"system": "shuffled_memory", "value": str(value / 2)})
                if metric == RECALL:
                    told.append(own | {"system": "popularity", "value": "0.03"})
    return told


def test_the_table_holds_means_and_spreads_and_what_is_common_once(rows):
    means, deviations = comparison.table(rows)
    found = {row["system"]: row["metrics"] for row in means}
    assert set(found) == {*FOUND, "popularity", *(f"{name}, shuffled_memory" for name in FOUND)}
    for name, (_, recall, perplexity) in FOUND.items():
        assert found[name] == {RECALL: mean(recall), PERPLEXITY: mean(perplexity)}
        spread = {RECALL: recall, PERPLEXITY: perplexity}
        assert deviations[name] == {k: stdev(x) for k, x in spread.items() if len(x) > 1}
    assert found["popularity"] == {RECALL: pytest.approx(0.03)}


def test_what_several_have_in_common_stands_once_beside_what_another_has(rows):
    for row in rows:
        if row["system"] == "popularity" and row["experiment"] == "m_25":
            row["value"] = "0.04"  # of other users
    found = {row["system"]: row["metrics"][RECALL] for row in comparison.table(rows)[0]}
    assert {name: x for name, x in found.items() if "popularity" in name} == {
        "m_50, popularity": pytest.approx(0.03),
        "m_25, popularity": 0.04,
    }


def test_the_cheapest_is_the_best_of_its_column(rows):
    costs = {"m_50": 2.0, "t_25": 30.0}
    for name, cost in costs.items():
        own = next(row for row in rows if row["experiment"] == name)
        rows.append(own | {"system": "user_llm", "metric": "cost/gflop", "value": str(cost)})
    found, _ = comparison.table(rows)
    assert best(found, "cost/gflop") == 2.0


def test_points_stand_from_left_to_right_over_the_seeds_that_all_have(rows):
    own = [row for row in rows if row["system"] == "user_llm"]
    by_history, by_perplexity, of_nothing = FIGURES
    assert comparison.points(by_history, "m_50", own) == [(50, pytest.approx(0.3))]
    assert comparison.points(by_history, "m_*", own) == [(25, 0.1), (50, 0.2)]
    assert comparison.points(by_history, "t_25 m_50", own) == [(25, 0.15), (50, 0.2)]
    assert comparison.points(by_perplexity, "*", own) == [(7.0, 0.15), (8.0, 0.1), (9.0, 0.2)]
    assert comparison.draw(of_nothing, rows) is None
    apart = [row | {"seed": row["experiment"] + row["seed"]} for row in own]
    wanted = [(25, 0.1), (50, pytest.approx(0.3))]
    assert comparison.points(by_history, "m_*", apart) == wanted


def test_a_sweep_ends_in_a_page_and_a_file_for_each_figure(rows, tmp_path):
    experiments = tuple(EXPERIMENT.model_copy(update={"name": name}) for name in FOUND)
    sweep = Sweep(experiments=experiments, figures=FIGURES)
    (tmp_path / comparison.SWEEP).write_text(sweep.model_dump_json())
    with (tmp_path / comparison.RESULTS).open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        with pytest.raises(ValueError, match="no experiment of the sweep in .* is finished"):
            file.flush()
            comparison.write(tmp_path)
        table.writerows(rows)
    page = comparison.write(tmp_path)
    assert page == tmp_path / report.PAGE
    root = ET.fromstring(page.read_text().removeprefix("<!DOCTYPE html>"))
    text = "".join(root.itertext())
    assert "By history" in text and "By perplexity" in text and "Of nothing" not in text
    assert "0.300" in text and "0.100" in text  # a mean and its deviation
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["1.svg", "2.svg"]
    assert "next item, recall@10 against history" in (tmp_path / "figures/1.svg").read_text()
    comparison.write(tmp_path, pixels=True)
    for name, paper in (("1.png", b"\xff\xff\xff\xff"), ("1_dark.png", b"\x0d\x11\x17\xff")):
        size, corner = read_png((tmp_path / "figures" / name).read_bytes())
        assert size == (2 * charts.WIDTH, 2 * charts.HEIGHT) and corner == paper


def read_png(content):
    """A picture's width and height, and the red, green, blue and opacity of its first pixel."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, told, data = 8, b"", b""
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + length]
        told, data = (body if kind == b"IHDR" else told), data + body * (kind == b"IDAT")
        at += 12 + length
    return struct.unpack(">II", told[:8]), zlib.decompress(data)[1:5]


def test_pixels_that_cannot_be_drawn_are_refused_before_anything_is_written(
    rows, tmp_path, monkeypatch
):
    sweep = Sweep(experiments=(EXPERIMENT.model_copy(update={"name": "m_50"}),))
    figures = (FIGURES[1],)
    (tmp_path / comparison.SWEEP).write_text(
        sweep.model_copy(update={"figures": figures}).model_dump_json()
    )
    with (tmp_path / comparison.RESULTS).open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"pip install 'user-llm\[figures\]'"):
        commands.write_report(tmp_path, png=True)
    assert not (tmp_path / "figures").exists() and not (tmp_path / report.PAGE).exists()
    (tmp_path / comparison.SWEEP).unlink()
    with pytest.raises(ValueError, match="is not of a sweep"):
        commands.write_report(tmp_path, png=True)
