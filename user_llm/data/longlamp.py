"""LongLaMP's files, as its release on Hugging Face has them: longer texts than LaMP's.

Source: arXiv 2407.11016. A folder holds the parts `train`, `val` and `test` of one task, each in
files of Parquet, JSON or JSON lines whose names begin so. A record has `input`, `output`, `profile`
and, under a name by which the task is known, who asks. The task of e-mails is not released.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from user_llm.data import tables
from user_llm.data.lamp import KINDS, SPLITS, Question, entries, refuse, wanting

PARTS = dict(zip(SPLITS, ("train", "val", "test"), strict=True))
ASKS = {"name": "LongLaMP_2", "reviewerId": "LongLaMP_3", "author": "LongLaMP_4"}


def files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split that there are."""
    found = {
        split: sorted(p for p in folder.glob(f"{part}*") if p.suffix in tables.READERS)
        for split, part in PARTS.items()
    }
    return {split: paths for split, paths in found.items() if paths}


def read(folder: Path) -> tuple[str, dict[str, list[Question]]]:
    """The task of a folder in LongLaMP's layout, and its questions by split.

    Raises:
      ValueError: there are no questions, or files are not as they should be: what is wrong is named
        by file, index and field.
    """
    if not (paths := files(folder)):
        raise ValueError(f"{folder} holds no files that begin with {', '.join(PARTS.values())}")
    records = {split: list(_records(some)) for split, some in paths.items()}
    named = {ASKS[x] for some in records.values() for _, _, r in some for x in ASKS.keys() & r}
    if len(named) != 1:
        found = f"of several tasks, {', '.join(sorted(named))}" if named else "of none"
        raise ValueError(
            f"{folder} is {found}; records of one task have one of {', '.join(ASKS)} for who asks"
        )
    (task,), questions, problems = named, {}, []
    kind = KINDS[task]
    for split, some in records.items():
        questions[split] = []
        for nth, (file, i, record) in enumerate(some):
            wrong = list(wanting(record, kind, ("input",), kind.fields))
            problems += [f"{file}, record {i}: {what}" for what in wrong]
            if not wrong:
                output = record.get("output") or None
                made = Question(str(nth), str(record["input"]), entries(record), output)
                questions[split].append(made)
    refuse(folder, problems)
    return task, questions


def _records(paths: list[Path]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Each record with its file and its place there."""
    for path in paths:
        columns = tables.READERS[path.suffix](path)
        for i, values in enumerate(zip(*columns.values(), strict=True)):
            yield path.name, i, dict(zip(columns, values, strict=True))
