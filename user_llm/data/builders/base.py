"""What all builders share: from a reader of raw files to a folder that is complete or not there."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm.auto import tqdm

from user_llm.data.records import count
from user_llm.data.schema import TimelineSchema

if TYPE_CHECKING:  # it imports Apache Beam, which most environments lack
    from user_llm.data.builders.distributed import Plan

logger = logging.getLogger(__name__)
Record = dict[str, Any]


class Raw(NamedTuple):
    """Raw data that was read: one record per user, by time, and one per item.

    A timeline has `user` and arrays over its events: `item`, `timestamp` (int64 seconds), the
    columns of the schema's event features, and `rating` and `review` where there are any. An item
    has `item`, `title`, `genres`, `text` and the columns of the item features.
    """

    schema: TimelineSchema
    users: int
    timelines: Callable[[], Iterator[Record]]
    items: list[Record]
    remarks: list[str]  # what was repaired, or differs from what was expected

    def records(self, config: str) -> Iterator[Record]:
        return self.timelines() if config == "timelines" else iter(self.items)

    def number(self, config: str) -> int:
        return self.users if config == "timelines" else len(self.items)


class OwnInfo(tfds.core.DatasetInfo):
    """What describes a data set of one's own."""

    def initialize_from_bucket(self) -> None:
        """There is nothing of it in TFDS's bucket; looking there leaves a temporary folder."""


class TimelineBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of the configs `timelines` and `items`; a subclass says how to `read`."""

    VERSION = tfds.core.Version("1.0.0")  # part of the fingerprint: raise it when records change
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="timelines"),
        tfds.core.BuilderConfig(name="items"),
    ]

    @classmethod
    @abstractmethod
    def files(cls, source: Path | None, version: str, **options: Any) -> list[Path]:
        """The files that decide the content.

        Raises:
          ValueError: the source is not what the builder reads, or has no such version.
        """

    @classmethod
    @abstractmethod
    def read(cls, source: Path | None, version: str, **options: Any) -> Raw:
        """The raw data, checked.

        Raises:
          ValueError: something does not fit; it is named.
        """

    @classmethod
    def plan(cls, source: Path | None, version: str, flags: list[str], **options: Any) -> "Plan":
        """How Apache Beam, told its flags, makes the same records as `read`.

        Raises:
          ValueError: this builder, or this version, is built by one machine alone.
        """
        raise ValueError(f"{cls.name} is built by one machine alone; leave --beam out")

    @classmethod
    def build(
        cls,
        source: Path | None,
        data_dir: Path,
        version: str,
        beam: list[str] | None = None,
        **options: Any,
    ) -> Path:
        """The complete folder of this data set below `data_dir`; see `builders.build`."""
        files = cls.files(source, version, **options)
        name = "-".join(filter(None, (cls.name, version, cls._fingerprint(files, options))))
        folder = data_dir / name
        if (folder / "counts.json").is_file():
            return folder
        if beam is None:
            raw = cls.read(source, version, **options)
        else:
            raw = cls.plan(source, version, beam, **options)
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{name}-") as temporary:
            made = Path(temporary, name)
            tally = cls._write(raw, made)
            remarks = raw.remarks if isinstance(raw, Raw) else raw.remarks(tally)
            for remark in remarks:
                logger.warning("%s: %s", name, remark)
            counts = {
                "users": tally["timelines"],
                "events": tally["events"],
                "items": tally["items"],
                "builder": cls.name,
                "version": version,
                "remarks": remarks,
            }
            (made / "schema.json").write_text(raw.schema.model_dump_json(indent=2))
            (made / "counts.json").write_text(json.dumps(counts, indent=2))
            try:
                os.rename(made, folder)
            except OSError:  # another process was faster, and made the same
                if not (folder / "counts.json").is_file():
                    raise
        return folder

    @classmethod
    def _fingerprint(cls, files: list[Path], options: Mapping[str, Any]) -> str:
        values = {k: v for k, v in options.items() if not isinstance(v, Path)}  # among the files
        digest = hashlib.sha256(f"{cls.VERSION} {sorted(values.items())}".encode())
        for path in files:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:8]

    @classmethod
    def _write(cls, raw: "Raw | Plan", folder: Path) -> Counter[str]:
        """Writes and recounts both configs; how many there are of each, and of events."""
        tfds.disable_progress_bar()  # ours tells users, TFDS's three tell shards and splits
        options = None if isinstance(raw, Raw) else raw.options
        tally = Counter()
        for config in ("timelines", "items"):
            builder = cls(raw, config=config, data_dir=folder, file_format="array_record")
            with contextlib.redirect_stdout(None):  # TFDS prints of a download that never is
                builder.download_and_prepare(
                    download_dir=folder.parent / "downloads",
                    download_config=tfds.download.DownloadConfig(beam_options=options),
                )
            expected = raw.number(config) if isinstance(raw, Raw) else builder.tally[config]
            if (written := count(Path(builder.data_dir))) != expected:
                raise RuntimeError(f"{written} of {expected} {config} were written to {folder}")
            tally |= builder.tally  # what both counted, both found the same
        return tally

    def __init__(self, raw: "Raw | Plan", config: str, **arguments: Any):
        self.raw = raw
        self.tally: Counter[str] = Counter()  # what was written so far
        self.what = config
        super().__init__(config=config, **arguments)

    def _info(self) -> OwnInfo:
        raw = self.raw
        first = next(raw.records(self.what)) if isinstance(raw, Raw) else raw.examples[self.what]
        features = tfds.features.FeaturesDict({k: _feature(v) for k, v in first.items()})
        return OwnInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        raw = self.raw
        return self._numbered(raw) if isinstance(raw, Raw) else raw.makers[self.what]

    def _numbered(self, raw: Raw) -> Iterator[tuple[int, Record]]:
        told = tqdm(raw.records(self.what), f"{self.name} {self.what}", raw.number(self.what))
        for key, record in enumerate(told):
            self.tally[self.what] += 1
            self.tally["events"] += len(record.get("timestamp", ()))
            yield key, record

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        from user_llm.data.builders.distributed import counted

        self.tally.update(counted(pipeline_result))


def timelines(columns: Mapping[str, np.ndarray]) -> Callable[[], Iterator[Record]]:
    """Groups a table of events by its column `user`, sorted, and each user's by time, then row."""
    names, codes = np.unique(columns["user"], return_inverse=True)
    order = np.lexsort((columns["timestamp"], codes))  # stable
    ends = np.cumsum(np.bincount(codes))
    columns = {name: column for name, column in columns.items() if name != "user"}

    def records() -> Iterator[Record]:
        for name, rows in zip(names, np.split(order, ends[:-1]), strict=True):
            yield {"user": str(name), **{k: column[rows] for k, column in columns.items()}}

    return records


def without_repeats(columns: dict[str, np.ndarray], remarks: list[str]) -> dict[str, np.ndarray]:
    """The table of events without rows that equal an earlier one in every column."""
    keys = [column if column.dtype.kind == "i" else _codes(column) for column in columns.values()]
    order = np.lexsort(keys)
    same = np.ones(len(order) - 1, bool)
    for key in keys:
        same &= np.diff(key[order]) == 0
    if not same.any():
        return columns
    remarks.append(f"{same.sum()} events repeat an earlier one in every column; they are dropped")
    keep = np.ones(len(order), bool)
    keep[order[1:][same]] = False  # lexsort is stable: the first of equals stays
    return {name: column[keep] for name, column in columns.items()}


def _codes(column: np.ndarray) -> np.ndarray:
    return np.unique(column, axis=0 if column.ndim > 1 else None, return_inverse=True)[1]


def complete_items(items: list[Record], occurring: np.ndarray, remarks: list[str]) -> list[Record]:
    """The items, with a bare record for each that occurs in events but is not described."""
    described = {record["item"] for record in items}
    unknown = [item for item in map(str, occurring) if item not in described]
    if unknown:
        remarks.append(
            f"{len(unknown)} of {len(occurring)} items that occur in events are not described, "
            f"such as {unknown[0]!r}; they are kept without title and features"
        )
    return items + [bare_item(item) for item in unknown]


def bare_item(item: str) -> Record:
    return {"item": item, "title": "", "genres": [], "text": ""}


def _feature(value: Any) -> tfds.features.FeatureConnector:
    if isinstance(value, str):
        return tfds.features.Text()
    if isinstance(value, int | float):
        return tfds.features.Scalar(np.int64 if isinstance(value, int) else np.float32)
    array = np.asarray(value)
    strings = array.dtype.kind in "OUS" or not len(array)
    dtype = np.str_ if strings else array.dtype
    return tfds.features.Tensor(shape=(None, *array.shape[1:]), dtype=dtype)
