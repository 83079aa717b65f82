"""Vectors of texts: made by a text encoder, and kept on disk so that each is made once.

A folder holds `index.json`, which says by which encoder and after which instruction, and files of
array_record. A record is the SHA-256 of a text and its vector in float32. Files are written whole
under another name first, so what was interrupted goes on, and new texts join in further files.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from user_llm.data.text import PassageTokenizer
from user_llm.files import write_whole
from user_llm.huggingface import import_text_encoder, text_encoder_config
from user_llm.inference.buckets import bucket
from user_llm.inference.vectors import begin, fingerprint
from user_llm.sharding import batch_sharding, make_mesh

DIGEST = 32  # bytes
FILE = 16_384  # vectors


class TextVectorizer:
    """Texts to vectors by the text encoder of a folder, on a mesh, compiled once per length.

    Args:
      instruction: what every text begins with, such as BGE's for queries.
      rows: texts that are encoded at a time.

    Raises:
      ValueError: as `import_text_encoder`; or there is no tokenizer, or the encoder has fewer rows
        of words than the tokenizer has tokens.
    """

    def __init__(
        self, folder: str | Path, mesh: Mesh | None = None, *, instruction: str = "", rows: int = 64
    ):
        self.config, self.mesh = text_encoder_config(folder), mesh or make_mesh()
        self.instruction, self.rows = instruction, rows
        self.tokenizer = PassageTokenizer(folder, self.config.max_tokens, instruction)
        graphdef, state = nnx.split(import_text_encoder(folder, self.mesh))
        self.params = nnx.to_pure_dict(state)
        self._encode = jax.jit(
            lambda params, tokens, mask: nnx.merge(graphdef, params)(tokens, mask)
        )

    @property
    def width(self) -> int:
        return self.config.hidden_size

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """The vector of each text."""
        ids = self.tokenizer(texts)
        found = np.zeros((len(texts), self.width), np.float32)
        order = np.argsort([-len(one) for one in ids], kind="stable")  # like lengths side by side
        for start in range(0, len(order), self.rows):
            some = order[start : start + self.rows]
            tokens, mask = self._row_block([ids[i] for i in some])
            with jax.set_mesh(self.mesh):
                vectors = self._encode(self.params, tokens, mask)
            found[some] = np.asarray(vectors)[: len(some)]
        return found

    def _row_block(self, ids: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Tokens and mask [rows, T] on their devices; a block that is not full has empty rows."""
        longest = min(bucket(max(map(len, ids))), self.config.max_position_embeddings)
        tokens: Int[np.ndarray, "B T"] = np.zeros((self.rows, longest), np.int32)
        lengths = np.zeros(self.rows, np.int32)
        for row, one in enumerate(ids):
            tokens[row, : len(one)], lengths[row] = one, len(one)
        mask = np.arange(longest) < lengths[:, None]
        place = batch_sharding(self.mesh)
        return jax.device_put(tokens, place), jax.device_put(mask, place)


def write(
    vectorizer: TextVectorizer, texts: Iterable[str], folder: Path, *, size: int = FILE
) -> int:
    """Keeps the vector of every text in a folder; how many were made, for new ones alone.

    Raises:
      ValueError: the folder holds vectors of another encoder or instruction, or is damaged.
    """
    index = {
        "width": vectorizer.width,
        "encoder": fingerprint(vectorizer.params),
        "pooling": vectorizer.config.pooling,
        "normalize": vectorizer.config.normalize,
        "max_tokens": vectorizer.config.max_tokens,
        "instruction": vectorizer.instruction,
    }
    begin(folder, index)
    known = {digest for path in _files(folder) for digest in _read(path, vectorizer.width)[0]}
    wanted = {digest(text): text for text in texts}
    new = [text for key, text in wanted.items() if key not in known]
    with tqdm(total=len(wanted), initial=len(wanted) - len(new), desc="texts", unit="text") as bar:
        for start in range(0, len(new), size):
            some = new[start : start + size]
            pieces = []
            for at in range(0, len(some), piece := 16 * vectorizer.rows):
                pieces.append(vectorizer(some[at : at + piece]))
                bar.update(len(pieces[-1]))
            write_whole(folder / _name(some), partial(_write, some, np.concatenate(pieces)))
    return len(new)


def of(
    encoder: Path, texts: Sequence[str], folder: Path, mesh: Mesh | None = None
) -> Float[np.ndarray, "N D"]:
    """The vector of each text, those of empty ones zero; what is not kept yet is made and kept.

    Each encoder has a folder of its own within `folder`.
    """
    own = folder / encoder_hash(encoder)[:8]
    there = [row for row, text in enumerate(texts) if text]
    said = [texts[row] for row in there]
    if not (own / "index.json").is_file() or not TextVectors(own).has(said):
        write(TextVectorizer(encoder, mesh), said, own)
    kept = TextVectors(own)
    found = np.zeros((len(texts), kept.width), np.float32)
    found[there] = kept.vectors[kept.rows(said)]
    return found


def encoder_hash(encoder: Path) -> str:
    """The SHA-256 of all files of a text encoder's folder."""
    hashed = hashlib.sha256()
    for path in sorted(path for path in encoder.rglob("*") if path.is_file()):
        hashed.update(path.name.encode() + path.read_bytes())
    return hashed.hexdigest()


class TextVectors:
    """The vectors that a folder keeps, by text.

    Raises:
      ValueError: it holds none, or is damaged.
    """

    def __init__(self, folder: Path):
        if not (folder / "index.json").is_file():
            raise ValueError(f"{folder} holds no vectors; write some with `user-llm embed-texts`")
        self.folder, self.index = folder, json.loads((folder / "index.json").read_text())
        parts = [_read(path, self.width) for path in _files(folder)]
        self._rows = {key: row for row, key in enumerate(key for keys, _ in parts for key in keys)}
        blank = np.zeros((0, self.width), np.float32)
        self.vectors = np.concatenate([blank, *(vectors for _, vectors in parts)])

    @property
    def width(self) -> int:
        return self.index["width"]

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, texts: Iterable[str]) -> bool:
        """Whether there is a vector of each text."""
        return all(digest(text) in self._rows for text in texts)

    def rows(self, texts: Sequence[str]) -> Int[np.ndarray, " N"]:
        """Where in `vectors` each text's stands.

        Raises:
          ValueError: some have none.
        """
        found = [self._rows.get(digest(text), -1) for text in texts]
        if lost := [text for text, row in zip(texts, found, strict=True) if row < 0]:
            raise ValueError(
                f"{self.folder} lacks the vectors of {len(lost)} of {len(texts)} texts, such as "
                f"{lost[0][:60]!r}; add them with `user-llm embed-texts`"
            )
        return np.array(found, np.int64)


def digest(text: str) -> bytes:
    """What a text is known by."""
    return hashlib.sha256(text.encode()).digest()


def _name(texts: Sequence[str]) -> str:
    """By what it holds, so that processes side by side do not write over each other's."""
    whole = hashlib.sha256(b"".join(map(digest, texts))).hexdigest()
    return f"vectors-{whole[:16]}.array_record"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("vectors-*.array_record"))


def _write(texts: Sequence[str], vectors: Float[np.ndarray, "N D"], path: Path) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for text, vector in zip(texts, vectors, strict=True):
        writer.write(digest(text) + vector.astype("<f4").tobytes())
    writer.close()


def _read(path: Path, width: int) -> tuple[list[bytes], Float[np.ndarray, "N D"]]:
    """The texts' digests and the vectors of a file."""
    try:
        source = ArrayRecordDataSource(str(path))
        records = source.__getitems__(range(len(source)))
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged; remove it and embed again: {error}") from error
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(-1, DIGEST + 4 * width)
    vectors = np.ascontiguousarray(rows[:, DIGEST:]).view("<f4").astype(np.float32)
    return [row.tobytes() for row in rows[:, :DIGEST]], vectors
