"""LongLaMP's files as its release has them, in each of the forms that `datasets` writes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from user_llm.data import builders
from user_llm.data.dataset import load
from user_llm.data.lamp import KINDS
from user_llm.data.longlamp import read
from user_llm.data.tasks import TASKS

ASKS = {"LongLaMP_2": "name", "LongLaMP_3": "reviewerId", "LongLaMP_4": "author"}
INPUTS = {
    "LongLaMP_2": 'Generate an abstract for the title "Frogs" using the following items: 1. ponds',
    "LongLaMP_3": 'Generate the review text for a product with description "A red lamp".',
    "LongLaMP_4": "Generate the content for a post with summary: rain again",
}
PRESENT = INPUTS | {"LongLaMP_2": "1. ponds"}
ENTRIES = {
    "LongLaMP_2": {"id": "7", "title": "Newts", "abstract": "We count.", "year": 2019},
    "LongLaMP_3": {
        "overall": "4.0",
        "summary": "fine",
        "description": "A desk",
        "reviewText": "It stands.",
    },
    "LongLaMP_4": {"id": "x", "author": "ann", "summary": "sun", "content": "It shone."},
}
PROMPTS = {
    "LongLaMP_2": '"We count." is the abstract for the title "Newts". Use the above abstracts as '
    "context to understand the style and language of the user and, Generate an",
    "LongLaMP_3": '"4.0" is a rating for the product with description "A desk". "fine" is summary '
    'for "It stands.". Following the given patterns Generate the',
    "LongLaMP_4": '"It shone." is a summary for "sun". Following the given patterns, Generate',
}


def records(task, count):
    own = {"input": INPUTS[task], "output": "said", "profile": [ENTRIES[task]] * 2}
    return [{ASKS[task]: f"user {i}", **own} for i in range(count)]


def write(folder, task, form):
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        rows = records(task, count)
        if form == "parquet":
            name = f"{part}-00000-of-00001.parquet"
            pq.write_table(pa.Table.from_pylist(rows), folder / name)
        else:
            lines = "\n".join(map(json.dumps, rows))
            (folder / f"{part}.{form}").write_text(lines if form == "jsonl" else json.dumps(rows))


@pytest.mark.parametrize("form", ["parquet", "json", "jsonl"])
@pytest.mark.parametrize("task", ASKS)
def test_every_form_tells_the_same(tmp_path, task, form):
    write(tmp_path, task, form)
    found, splits = read(tmp_path)
    assert found == task
    assert {split: len(some) for split, some in splits.items()} == {"train": 3, "dev": 2, "test": 1}
    for question in splits["train"]:
        assert (question.input, question.output) == (INPUTS[task], "said")
        assert question.profile == ({n: str(x) for n, x in ENTRIES[task].items()},) * 2
    assert [question.id for question in splits["train"]] == ["0", "1", "2"]
    kind = KINDS[task]
    assert kind.present(INPUTS[task]) == PRESENT[task]
    assert kind.prompt(INPUTS[task], [kind.tells(question.profile[0])]).startswith(PROMPTS[task])


def test_a_built_set_asks_and_knows(tmp_path):
    write(tmp_path / "raw", "LongLaMP_3", "parquet")
    data = load(
        builders.build(
            "lamp", source=tmp_path / "raw", data_dir=tmp_path / "data", version="LongLaMP_3"
        )
    )
    assert data.users[:4] == ("train/0", "train/1", "train/2", "dev/0")
    task = TASKS["LongLaMP_3"](data)
    assert task.ask(data.offsets[:0], 2) == (INPUTS["LongLaMP_3"], "said")
    assert data.review(0) == "4.0 fine A desk It stands."


def test_malformed_records_are_refused_by_file_index_and_field(tmp_path):
    with pytest.raises(ValueError, match="holds no files that begin with train, val, test"):
        read(tmp_path)
    wrong = records("LongLaMP_3", 3)
    wrong[1]["profile"] = [{**ENTRIES["LongLaMP_3"], "summary": ["a"]}]
    wrong[2]["input"] = " "
    (tmp_path / "train.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError) as refused:
        read(tmp_path)
    told = str(refused.value)
    assert "train.json, record 1: profile entry 0: summary is list, not text" in told
    assert "train.json, record 2: input is empty" in told
    (tmp_path / "val.json").write_text(json.dumps(records("LongLaMP_2", 1)))
    with pytest.raises(ValueError, match="of several tasks, LongLaMP_2, LongLaMP_3"):
        read(tmp_path)
