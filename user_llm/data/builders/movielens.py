"""MovieLens (Harper and Konstan 2015) in GroupLens's official files, as a folder or a zip.

Where a movie has a plot in `movies_plots.dat` (id::title::...::plot::poster), it is its text.
"""

import csv
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds
from pyarrow import csv as arrow_csv

from user_llm.data.builders.base import (
    Raw,
    TimelineBuilder,
    complete_items,
    timelines,
    without_repeats,
)
from user_llm.data.features import Bag, Categorical, Time
from user_llm.data.schema import TimelineSchema

SCHEMA = TimelineSchema(
    features=(
        Categorical(name="item"),
        Categorical(name="rating"),
        Bag(name="genres", of="item"),
        Categorical(name="year", of="item"),
        Time(name="time"),
    ),
    predicted=("item", "rating"),
)
GENRES_100K = (  # in the order of u.item's flags
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
HEADER = b"userId,movieId,rating,timestamp"
YEAR = re.compile(r"\((\d{4})\)\s*$")  # at the end of a title
PLOT = 9  # its place in a line of movies_plots.dat


class Layout(NamedTuple):
    """How a version's files are written, and how much they hold where that is fixed."""

    ratings: str
    movies: str
    separator: str
    encoding: str = "utf-8"
    counts: tuple[int, int, int] | None = None  # ratings, users, movies described


VERSIONS = {
    "100k": Layout("u.data", "u.item", "\t", "latin-1", (100_000, 943, 1_682)),
    "1m": Layout("ratings.dat", "movies.dat", "::", "latin-1", (1_000_209, 6_040, 3_883)),
    "10m": Layout("ratings.dat", "movies.dat", "::", "utf-8", (10_000_054, 69_878, 10_681)),
    "20m": Layout("ratings.csv", "movies.csv", ",", "utf-8", (20_000_263, 138_493, 27_278)),
    "25m": Layout("ratings.csv", "movies.csv", ",", "utf-8", (25_000_095, 162_541, 62_423)),
    "32m": Layout("ratings.csv", "movies.csv", ",", "utf-8", (32_000_204, 200_948, 87_585)),
    "latest-small": Layout("ratings.csv", "movies.csv", ","),
}


class MovieLens(TimelineBuilder, skip_registration=True):
    """Ratings as events, with the schema's features; item ids are integers."""

    name = "movielens"
    VERSION = tfds.core.Version("1.1.0")  # 1.1.0: the year of an item

    @classmethod
    def files(cls, source: Path | None, version: str) -> list[Path]:
        if version not in VERSIONS:
            raise ValueError(
                f"movielens has no version {version!r}; choose from {', '.join(VERSIONS)}"
            )
        if source is None or not source.exists():
            raise ValueError(f"movielens {version} needs its official files; {source} is not there")
        if source.is_file():
            return [source]
        layout = VERSIONS[version]
        wanted = [source / layout.ratings, source / layout.movies]
        if lost := [path.name for path in wanted if not path.is_file()]:
            raise ValueError(f"{source} lacks {', '.join(lost)} of movielens {version}")
        return [p for p in (*wanted, source / "movies_plots.dat") if p.is_file()]

    @classmethod
    def read(cls, source: Path, version: str) -> Raw:
        layout, remarks = VERSIONS[version], []
        raw = _contents(source, layout)
        events = _ratings(raw[layout.ratings], layout, remarks)
        plots = _plots(raw.get("movies_plots.dat", b""), remarks)
        movies = _movies(raw[layout.movies], layout, plots, remarks)
        found = (len(events["user"]), len(np.unique(events["user"])), len(movies))
        if layout.counts and found != layout.counts:
            pairs = zip(found, layout.counts, ("ratings", "users", "movies"), strict=True)
            differs = [f"{n:,} {what} instead of {m:,}" for n, m, what in pairs if n != m]
            remarks.append(f"differs from the official {version}: {', '.join(differs)}")
        items = complete_items(movies, np.unique(events["item"]), remarks)
        items = [item | {"year": _year(item["title"])} for item in items]
        return Raw(SCHEMA, found[1], timelines(events), items, remarks)


def _contents(source: Path, layout: Layout) -> dict[str, bytes]:
    wanted = (layout.ratings, layout.movies, "movies_plots.dat")
    if source.is_dir():
        return {n: (source / n).read_bytes() for n in wanted if (source / n).is_file()}
    try:
        with zipfile.ZipFile(source) as archive:
            members = {Path(n).name: n for n in archive.namelist()}
            found = {n: archive.read(members[n]) for n in wanted if n in members}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{source} is not a whole zip file: {error}") from error
    if lost := [n for n in wanted[:2] if n not in found]:
        raise ValueError(f"{source} lacks {', '.join(lost)}")
    return found


def _ratings(data: bytes, layout: Layout, remarks: list[str]) -> dict[str, np.ndarray]:
    """The columns of the ratings, without lines that are not whole ratings."""
    if data and not data.endswith(b"\n"):
        remarks.append(f"{layout.ratings} ends inside a line, which is dropped: it is truncated")
        data = data[: data.rfind(b"\n") + 1]
    if not data.strip():
        raise ValueError(f"{layout.ratings} holds no ratings")
    header = layout.separator == ","
    if header and data.partition(b"\n")[0].strip() != HEADER:
        raise ValueError(f"{layout.ratings} must begin with the line {HEADER.decode()}")
    if layout.separator == "::":  # Arrow's separators are one character
        data = data.replace(b"::", b"\t")
    names = ["user", "item", "rating", "timestamp"]
    bad = []

    def skip(row: arrow_csv.InvalidRow) -> str:
        bad.append(row.text)
        return "skip"

    table = arrow_csv.read_csv(
        pa.BufferReader(data),
        read_options=arrow_csv.ReadOptions(
            column_names=names, encoding="latin-1", skip_rows=int(header)
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter="," if header else "\t", quote_char=False, invalid_row_handler=skip
        ),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    forms = [r"^\d{1,18}$", r"^\d{1,18}$", r"^\d(\.\d+)?$", r"^\d{1,18}$"]
    match = pc.match_substring_regex  # pyright: ignore[reportAttributeAccessIssue] -- generated
    fits = [np.asarray(match(table[n], form)) for n, form in zip(names, forms, strict=True)]
    whole = np.all(fits, axis=0)
    strange = table.filter(pa.array(~whole))
    bad += [" ".join(row.values()) for row in strange.slice(0, 1).to_pylist()]
    if bad:
        dropped = len(bad) + max(0, len(strange) - 1)
        remarks.append(f"{layout.ratings}: {dropped} malformed lines dropped, such as {bad[0]!r}")
    table = table.filter(pa.array(whole))
    if not len(table):
        raise ValueError(f"{layout.ratings} holds no rating that can be read")
    types = (pa.int64(), pa.int64(), pa.float32(), pa.int64())
    columns = {n: table[n].cast(t).to_numpy() for n, t in zip(names, types, strict=True)}
    return without_repeats(columns, remarks)


def _movies(data: bytes, layout: Layout, plots: dict[str, str], remarks: list[str]) -> list[dict]:
    lines = _lines(data.decode(layout.encoding))
    if layout.separator == ",":
        rows = list(csv.reader(lines))[1:]
    elif layout.ratings == "u.data":
        rows = [_flagged(line.split("|")) for line in lines]
    else:
        rows = [line.split("::") for line in lines]
    whole = {int(row[0]): row for row in reversed(rows) if len(row) == 3 and row[0].isdigit()}
    if dropped := len(rows) - len(whole):
        remarks.append(f"{layout.movies}: {dropped} malformed or repeated lines dropped")
    return [
        {
            "item": str(movie),
            "title": title,
            "genres": [g for g in genres.split("|") if g and g != "(no genres listed)"],
            "text": plots.get(str(movie), ""),
        }
        for movie, (_, title, genres) in sorted(whole.items())
    ]


def _year(title: str) -> str:
    found = YEAR.search(title)
    return found[1] if found else ""


def _flagged(fields: list[str]) -> list[str]:
    """A line of u.item as id, title and genres."""
    flags = fields[5:]
    if len(flags) != len(GENRES_100K):
        return []
    genres = (g for g, flag in zip(GENRES_100K, flags, strict=True) if flag == "1")
    return [fields[0], fields[1], "|".join(genres)]


def _plots(data: bytes, remarks: list[str]) -> dict[str, str]:
    lines = [line.split("::") for line in _lines(data.decode())]
    whole = [f for f in lines if len(f) == PLOT + 2]
    if len(whole) != len(lines):
        remarks.append(f"movies_plots.dat: {len(lines) - len(whole)} malformed lines dropped")
    return {f[0]: f[PLOT] for f in whole if f[PLOT] != "N/A"}


def _lines(text: str) -> list[str]:
    """Lines as files end them: str.splitlines also splits at what Latin-1 titles may hold."""
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
