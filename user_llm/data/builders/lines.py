"""Files with an object in each line, as JSON or as Python writes it, plain or gzipped."""

import ast
import gzip
import html
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

Row = dict[str, Any]
Fits = Callable[[Any], bool]
PARSERS = {"JSON": json.loads, "Python": ast.literal_eval}
MALFORMED = (  # what they raise, and what reading a row's fields does
    *(ValueError, SyntaxError, RecursionError, MemoryError),
    *(AttributeError, KeyError, TypeError),
)
TOLERATED = 0.01  # share of a file's lines that may be malformed
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def rows(
    path: Path,
    form: str,
    wanted: Mapping[str, Fits],
    remarks: list[str],
    unfold: Callable[[Row], list[Row]] = lambda row: [row],
) -> Iterator[Row]:
    """What a file's lines unfold to, where the wanted fields of each row fit.

    Other lines are malformed and dropped, with a remark.

    Raises:
      ValueError: more than one line of a hundred is malformed, or the file is not whole.
    """
    lines, bad, first = 0, 0, ""
    for number, line in _lines(path):
        lines += 1
        try:
            found = parsed(line, form, wanted, unfold)
        except MALFORMED as error:
            bad += 1
            first = first or f"line {number} ({error})"
        else:
            yield from found
    if bad > TOLERATED * lines:
        raise ValueError(
            f"{path}: {bad} of {lines} lines are malformed, first {first}; each must be an object "
            f"as {form} writes it, with {', '.join(wanted)}. Is it of another version?"
        )
    if bad:
        remarks.append(f"{path.name}: {bad} malformed lines dropped, first {first}")


def parsed(
    line: bytes, form: str, wanted: Mapping[str, Fits], unfold: Callable[[Row], list[Row]]
) -> list[Row]:
    """What a line unfolds to; raises one of MALFORMED where it is none."""
    return [_checked(row, wanted) for row in unfold(PARSERS[form](line.decode()))]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(tqdm(file, path.name, unit=" lines"), 1):
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def _checked(row: Any, wanted: Mapping[str, Fits]) -> Row:
    for name, fits in wanted.items():
        if not fits(row.get(name)):
            raise ValueError(f"{name} is {row.get(name)!r}")
    return row


def flat(value: Any) -> list[str]:
    """The strings of a string, of a list of strings, or of lists of them; none of anything else."""
    if isinstance(value, str):
        return [value]
    return [text for part in value for text in flat(part)] if isinstance(value, list) else []


def plain(value: Any) -> str:
    """The strings of `flat` as one line of text, without the HTML in it."""
    return encodable(" ".join(html.unescape(TAG.sub(" ", " ".join(flat(value)))).split()))


def distinct(value: Any) -> list[str]:
    """The strings of `flat`, each `plain` and once."""
    return list(dict.fromkeys(filter(None, map(plain, flat(value)))))


def encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON may hold and UTF-8 may not."""
    return text.encode(errors="replace").decode()
