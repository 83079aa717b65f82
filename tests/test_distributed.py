"""What Apache Beam builds, piece by piece, is what one machine builds."""

import json
from pathlib import Path

import numpy as np
import pytest
import review_files
import tensorflow_datasets as tfds

from user_llm import cli
from user_llm.data.builders import build
from user_llm.data.dataset import load

pytestmark = pytest.mark.filterwarnings("ignore:label.. is deprecated:DeprecationWarning")  # Beam's
REASON = "builds by Apache Beam: install the extra `beam` in an environment of its own"
RUNNER = "--runner=FnApiRunner"
PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


def raw(folder: Path, version: str, gz: bool = False) -> Path:
    """Reviews by 40 users of 30 items: with ties, repeats, and lines that lack a time or more."""
    rng = np.random.default_rng(0)
    told = [
        (f"U{'xyz'[u % 3] * 5}{u}", f"P{i}", float(r), 978300000 + int(t), "", f"No. {i}")
        for u, i, r, t in zip(*rng.integers([[40], [30], [6], [50]], size=(4, 900)), strict=True)
    ]
    items = [(f"P{i}", f"Title {i}", [["Music", f"G{i % 3}"]], None) for i in rng.permutation(26)]
    items.append(("P3", "Another title of 3", [["Music"]], None))
    review_files.write(folder, version, [*told, *told[:20]], items)
    file = folder / review_files.NAMES[version][0]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[5] = {k: v for k, v in rows[5].items() if "ime" not in k}  # untimed
    review_files.put(file, [*map(json.dumps, rows), "", "no object"], gz)
    if gz:
        file.unlink()
    return folder


def records(folder: Path, config: str) -> list[dict]:
    (home,) = folder.glob(f"*/{config}/*")
    source = tfds.builder_from_directory(home).as_data_source(split="train")
    return [{k: np.asarray(v).tolist() for k, v in record.items()} for record in source]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "gz", "flags"),
    [("2014", False, ()), ("2018", True, ()), ("2023", False, PROCESSES)],
    ids=["of 2014", "of 2018, gzipped", "of 2023, by two processes"],
)
def test_records_are_those_of_one_machine(version, gz, flags, tmp_path, monkeypatch):
    distributed = pytest.importorskip("user_llm.data.builders.distributed", reason=REASON)
    monkeypatch.setattr(distributed, "PIECE", 5_000)
    source = raw(tmp_path / "raw", version, gz)
    made = [
        build("amazon_reviews", source=source, version=version, data_dir=tmp_path / name, **options)
        for name, options in (("one", {}), ("many", {"beam": [RUNNER, *flags]}))
    ]
    assert made[0].name == made[1].name
    for config in ("timelines", "items"):
        one, many = (records(folder, config) for folder in made)
        assert one == many
        assert len(one) == {"timelines": 40, "items": 30}[config]
    counts = [json.loads((folder / "counts.json").read_text()) for folder in made]
    remarks = [told.pop("remarks") for told in counts]
    assert counts[0] == counts[1]
    assert len(remarks[0]) == len(remarks[1]) == 5
    assert load(made[0]).items.titles == load(made[1]).items.titles


def test_too_many_malformed_lines_are_refused(tmp_path):
    pytest.importorskip("user_llm.data.builders.distributed", reason=REASON)
    source = review_files.write(tmp_path / "raw", "2014")
    with (source / review_files.NAMES["2014"][0]).open("a") as file:
        file.write("no object\n")
    with pytest.raises(ValueError, match=r"1 of 7 lines of reviews are malformed"):
        build("amazon_reviews", source=source, version="2014", data_dir=tmp_path, beam=[RUNNER])
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_the_command_line_builds_so(tmp_path, capsys):
    pytest.importorskip("user_llm.data.builders.distributed", reason=REASON)
    source = review_files.write(tmp_path / "raw", "2014")
    command = ["data", "build", "amazon_reviews", "--version", "2014", "--source", str(source)]
    cli.main([*command, "--data-dir", str(tmp_path / "made"), f"--beam={RUNNER}"])
    assert load(Path(capsys.readouterr().out.strip())).users == ("A", "B")


def test_other_builders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="world is built by one machine alone; leave --beam out"):
        build("world", source=None, data_dir=tmp_path, beam=[], users=5, seed=0)
    source = review_files.timelines(tmp_path / "raw")
    with pytest.raises(ValueError, match="of 2023_timelines is built by one machine"):
        build("amazon_reviews", source=source, version="2023_timelines", data_dir=tmp_path, beam=[])
