"""The features of an event, and how raw values of each become arrays.

A feature is fitted to the raw values of a table and then encodes any values as one of the three
kinds that `FeatureConfig` describes. Everywhere id 0 is a missing value, id 1 a value out of the
vocabulary, and the known values follow.
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from user_llm.config import Config, FeatureConfig

MISSING, UNKNOWN, KNOWN = 0, 1, 2  # ids: of a missing value, of a strange one, of the first known
LATEST = 10**11  # seconds; what lies beyond the year 5138 is in milliseconds
FINITE = float(np.finfo(np.float32).max)
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class Vocabulary(Config):
    """What a feature has learnt from the raw values it was fitted to."""

    values: tuple[int, ...] | tuple[float, ...] | tuple[str, ...] = ()  # sorted
    slots: NonNegativeInt = 0  # of the fullest bag
    mean: float = 0.0
    scale: float = 1.0


class Feature(Config):
    """One thing known of an event, or of the event's item."""

    name: str
    column: str = Field(default_factory=lambda data: data.get("name", ""))  # of the raw table
    of: Literal["event", "item"] = "event"

    def fit(self, values: Sequence[Any] | np.ndarray) -> Vocabulary:
        """The vocabulary of these raw values."""
        return Vocabulary()

    def problem(self, value: Any) -> str:
        """What is wrong with one raw value that is not missing; empty if nothing is."""
        return ""


class Categorical(Feature):
    """One of a set of values: int32 [N]."""

    kind: Literal["categorical"] = "categorical"
    min_count: PositiveInt = 1  # rarer values are out of the vocabulary
    max_size: NonNegativeInt = 0  # the most frequent values make the vocabulary; 0: all

    def fit(self, values: Sequence[Any] | np.ndarray) -> Vocabulary:
        return Vocabulary(values=_distinct(values, self.min_count, self.max_size))

    def encode(self, values: Sequence[Any] | np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
        return _ids(values, vocabulary)

    def config(self, vocabulary: Vocabulary, predicted: bool = False) -> FeatureConfig:
        size = KNOWN + len(vocabulary.values)
        return FeatureConfig(name=self.name, kind="categorical", size=size, predicted=predicted)

    def problem(self, value: Any) -> str:
        single = isinstance(value, str | int | float | np.generic)
        return "" if single else f"{value!r} is not a single value; a Bag holds several"


class Bag(Feature):
    """Several values, such as genres, as a list or as one separated string: int32 [N, K]."""

    kind: Literal["bag"] = "bag"
    separator: Annotated[str, Field(min_length=1)] = "|"
    slots: NonNegativeInt = 0  # K; further values are cut. 0: as the fullest bag needs
    min_count: PositiveInt = 1
    max_size: NonNegativeInt = 0

    def fit(self, values: Sequence[Any] | np.ndarray) -> Vocabulary:
        flat, lengths = self._split(values)
        slots = self.slots or max(1, int(lengths.max(initial=1)))
        return Vocabulary(values=_distinct(flat, self.min_count, self.max_size), slots=slots)

    def encode(self, values: Sequence[Any] | np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
        flat, lengths = self._split(values)
        return _scatter(_ids(flat, vocabulary), lengths, vocabulary.slots)

    def config(self, vocabulary: Vocabulary, predicted: bool = False) -> FeatureConfig:
        size = KNOWN + len(vocabulary.values)
        return FeatureConfig(name=self.name, kind="bag", size=size, predicted=predicted)

    def problem(self, value: Any) -> str:
        if isinstance(value, str):
            return ""
        if not isinstance(value, Sequence | np.ndarray):
            return f"{value!r} is neither a list nor a string"
        inside = [v for v in value if isinstance(v, str) and self.separator in v]
        return f"{inside[0]!r} holds the separator {self.separator!r}" if inside else ""

    def _split(self, values: Iterable[Any]) -> tuple[list[Any], np.ndarray]:
        bags = [
            v.split(self.separator) if isinstance(v, str) and v else () if missing(v) else v
            for v in values
        ]
        return [v for bag in bags for v in bag], np.array([len(b) for b in bags], np.int64)


class Numeric(Feature):
    """A number, standardised, and whether there is one: float32 [N, 2], missing is (0, 0)."""

    kind: Literal["numeric"] = "numeric"

    def fit(self, values: Sequence[Any] | np.ndarray) -> Vocabulary:
        numbers = _numbers(values)
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return Vocabulary()
        return Vocabulary(mean=float(numbers.mean()), scale=float(numbers.std()) or 1.0)

    def encode(self, values: Sequence[Any] | np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
        numbers = _numbers(values)
        there = np.isfinite(numbers)
        standard = (np.where(there, numbers, vocabulary.mean) - vocabulary.mean) / vocabulary.scale
        return np.stack([standard, there], axis=1).astype(np.float32)

    def config(self, vocabulary: Vocabulary, predicted: bool = False) -> FeatureConfig:
        return FeatureConfig(name=self.name, kind="vector", size=2, predicted=predicted)

    def problem(self, value: Any) -> str:
        return "" if _is_number(value) else f"{value!r} is not a finite number"


class Time(Feature):
    """When an event happened: int32 [N, 3].

    The ids of the gap to the user's previous event (log2 of the seconds; the first event has its
    own), of the hour of the day and of the weekday (UTC), in disjoint ranges of one table. Events
    that go back in time are out of the vocabulary.
    """

    kind: Literal["time"] = "time"
    column: Literal["timestamp"] = "timestamp"  # the one column kept as whole seconds
    of: Literal["event"] = "event"
    gaps: PositiveInt = 32  # buckets; the last holds every longer gap

    def encode(
        self,
        values: Sequence[Any] | np.ndarray,
        vocabulary: Vocabulary,
        first: np.ndarray | None = None,
    ) -> np.ndarray:
        """`first` tells which events open a timeline; the values are one timeline without it."""
        seconds = np.asarray(values, np.int64)
        gap = np.diff(seconds, prepend=seconds[:1])
        bucket = np.ceil(np.log2(np.maximum(gap, 0) + 1.0)).astype(np.int64)
        gaps = np.where(gap < 0, UNKNOWN, KNOWN + 1 + np.minimum(bucket, self.gaps - 1))
        opens = np.arange(len(seconds)) == 0 if first is None else first
        hour, weekday = seconds // 3600 % 24, (seconds // 86400 + 3) % 7  # 1970 began on a Thursday
        hours = KNOWN + 1 + self.gaps + hour
        ids = [np.where(opens, KNOWN, gaps), hours, KNOWN + 1 + self.gaps + 24 + weekday]
        return np.stack(ids, axis=1).astype(np.int32)

    def config(self, vocabulary: Vocabulary, predicted: bool = False) -> FeatureConfig:
        size = KNOWN + 1 + self.gaps + 24 + 7
        return FeatureConfig(name=self.name, kind="bag", size=size, predicted=predicted)

    def problem(self, value: Any) -> str:
        if not _is_number(value):
            return f"{value!r} is not a time in seconds"
        late = abs(float(value)) >= LATEST
        return f"{value!r} is not in seconds; divide milliseconds by 1000" if late else ""


class Text(Feature):
    """Raw text as hashed words, int32 [N, words], or a given vector, float32 [N, vector + 1].

    Words are lowercase and without punctuation; a text without a word is out of the vocabulary.
    A vector is followed by whether there is one; missing is all zeros.
    """

    kind: Literal["text"] = "text"
    vector: NonNegativeInt = 0  # the width of precomputed vectors; 0: raw text
    words: PositiveInt = 32  # further words are cut
    buckets: PositiveInt = 4096

    def encode(self, values: Sequence[Any] | np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
        if self.vector:
            absent = np.full(self.vector, np.nan, np.float32)
            rows = [absent if missing(v) else np.asarray(v, np.float32) for v in values]
            vectors = np.stack(rows) if rows else np.zeros((0, self.vector), np.float32)
            there = np.isfinite(vectors).all(axis=1, keepdims=True)
            return np.concatenate([np.where(there, vectors, 0), there], axis=1, dtype=np.float32)
        ids = _Hashes(self.buckets)
        bags = [() if missing(text) else self._words(text, ids) for text in values]
        flat = np.array([i for bag in bags for i in bag], np.int32)
        return _scatter(flat, np.array([len(b) for b in bags], np.int64), self.words)

    def config(self, vocabulary: Vocabulary, predicted: bool = False) -> FeatureConfig:
        kind, size = ("vector", self.vector + 1) if self.vector else ("bag", KNOWN + self.buckets)
        return FeatureConfig(name=self.name, kind=kind, size=size, predicted=predicted)

    def problem(self, value: Any) -> str:
        if not self.vector:
            return "" if isinstance(value, str) else f"{value!r} is not text"
        vector = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
        if not vector or len(value) != self.vector:
            return f"needs a vector of {self.vector} numbers, not {str(value)[:40]!r}"
        return "" if all(map(_is_number, value)) else "its vector holds more than finite numbers"

    def _words(self, text: str, ids: "_Hashes") -> list[int]:
        return [ids[word] for word in WORD.findall(text.lower())[: self.words]] or [UNKNOWN]


def missing(value: Any) -> bool:
    """Whether a raw value stands for none: None, NaN, or an empty string."""
    if value is None or (isinstance(value, str) and not value):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def plain(values: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values as one array of integers, floats or strings, and which of them are missing."""
    array = values if isinstance(values, np.ndarray) else np.array([*values, None], object)[:-1]
    kind = array.dtype.kind
    if kind in "iub":
        return array.astype(np.int64), np.zeros(len(array), bool)
    if kind == "f":
        return array, np.isnan(array)
    if kind == "U":
        return array, array == ""
    absent = np.fromiter((missing(v) for v in array), bool, len(array))
    there = np.array(array[~absent].tolist())
    kind = there.dtype.kind
    there = there.astype(np.int64 if kind in "iub" else np.float64 if kind == "f" else str)
    filled = np.zeros(len(array), there.dtype)
    filled[~absent] = there
    return filled, absent


class _Hashes(dict):
    """Words to ids by a hash that is the same on every machine, remembered."""

    def __init__(self, buckets: int):
        super().__init__()
        self.buckets = buckets

    def __missing__(self, word: str) -> int:
        self[word] = KNOWN + zlib.crc32(word.encode()) % self.buckets
        return self[word]


def _distinct(values: Sequence[Any] | np.ndarray, min_count: int, max_size: int) -> tuple:
    array, absent = plain(values)
    distinct, counts = np.unique(array[~absent], return_counts=True)
    frequent = counts >= min_count
    distinct, counts = distinct[frequent], counts[frequent]
    if max_size and len(distinct) > max_size:
        distinct = distinct[np.sort(np.argsort(-counts, kind="stable")[:max_size])]
    if distinct.dtype == np.float32:
        return tuple(float(str(v)) for v in distinct)  # 3.7 rather than its nearest float32
    return tuple(distinct.tolist())


def _ids(values: Sequence[Any] | np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    array, absent = plain(values)
    known = np.asarray(vocabulary.values)
    if not len(known):
        return np.where(absent, MISSING, UNKNOWN).astype(np.int32)
    kinds = {array.dtype.kind, known.dtype.kind}
    if kinds == {"f"}:
        array, known = array.astype(np.float32), known.astype(np.float32)
    elif "U" in kinds:  # a server may be told "1193" of an item that the table knows as 1193
        array, known = array.astype(str), known.astype(str)
    order = np.argsort(known, kind="stable")
    place = order[np.searchsorted(known, array, sorter=order).clip(max=len(known) - 1)]
    ids = np.where(known[place] == array, place + KNOWN, UNKNOWN)
    return np.where(absent, MISSING, ids).astype(np.int32)


def _scatter(ids: np.ndarray, lengths: np.ndarray, slots: int) -> np.ndarray:
    """Bags laid out one after the other, as rows of `slots` filled up with 0."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    fits = places < slots
    out = np.zeros((len(lengths), slots), np.int32)
    out[rows[fits], places[fits]] = ids[fits]
    return out


def _numbers(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        return values.astype(np.float64)
    return np.array([np.nan if missing(v) else float(v) for v in values], np.float64)


def _is_number(value: Any) -> bool:
    try:
        return abs(float(value)) <= FINITE
    except (TypeError, ValueError):
        return False
