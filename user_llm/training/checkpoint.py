"""Checkpoints: training states on disk, whole, verified, placed where the present mesh wants them.

A checkpoint is a folder named `<step>-<hash>`, with `-best` after it where it is the best so far.
In it lie Orbax's `state` and `manifest.json`: step, config, metrics, and the shape, dtype and
SHA-256 of every leaf, because Orbax does not notice flipped bits. The hash in the name is the
manifest's own. The folder gets its name only when it is complete, so a killed save leaves none.
In a bucket nothing can be renamed: there the manifest is what is written last and removed first,
and a folder without one is no checkpoint.

Arrays are hashed and taken off their devices before `save` returns, and written behind the
training's back; `wait` returns when they are safe.

The step is the position in the data as well: batches are a function of seed and step.
"""

import contextlib
import hashlib
import json
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from user_llm.files import (
    AnyPath,
    entries,
    in_bucket,
    modified,
    remove_folder,
    write_atomically,
)

logger = logging.getLogger(__name__)

NAME = re.compile(r"(\d{8,})-([0-9a-f]{16})(-best)?")
MANIFEST = "manifest.json"


class Restored(NamedTuple):
    """What a checkpoint holds; `state` has the structure and the placement that were asked for."""

    step: int
    state: Any
    config: dict[str, Any]
    metrics: dict[str, float]


class Best(NamedTuple):
    """When a stage was at its best, and how good it was."""

    step: int
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one stage of one run: the latest `keep`, the best, and each `keep_every`.

    With several processes, each of them calls every method, and they share the folder.
    """

    def __init__(self, folder: AnyPath, *, keep: int = 2, keep_every: int = 0):
        # Orbax refuses relative paths, and no bucket has any.
        self.folder = folder if in_bucket(folder) else Path(folder).absolute()
        self.keep, self.keep_every = keep, keep_every
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None

    def steps(self) -> list[int]:
        """The steps that were saved, in ascending order."""
        self.wait()
        return sorted({_step(path) for path in self._newest_first()})

    def best(self, until: int | None = None) -> Best | None:
        """What was last saved as the best, at step `until` or before; reads no arrays."""
        self.wait()
        for path in self._newest_first():
            if not _is_best(path) or (until is not None and _step(path) > until):
                continue
            try:
                manifest = _read_manifest(path)
            except _DamageError as damage:
                logger.warning("checkpoint %s is DAMAGED and passed over: %s", path, damage)
                continue
            return Best(manifest["step"], manifest["metrics"])
        return None

    def save(
        self,
        step: int,
        state: Any,
        *,
        config: dict[str, Any],
        metrics: dict[str, float] | None = None,
        best: bool = False,
    ) -> None:
        """Begins to write a pytree of non-empty arrays; the caller may then change or donate them.

        What need not be kept is removed once it is complete. A second save of a step replaces the
        first. Later steps, which a run leaves that fell back to an earlier checkpoint, are removed.

        If the save before could not be written, that is only logged: this one tries again.
        """
        try:
            self.wait()
        except OSError as error:
            logger.error("%s; free space there: the training goes on, and saves again", error)
        leaves = _leaves(state)
        records = {
            name: {"shape": list(x.shape), "dtype": str(x.dtype), "sha256": _sha256(x)}
            for name, x in leaves.items()
        }
        manifest = {
            "step": step,
            "saved": datetime.now(UTC).isoformat(),  # makes every save's hash another
            "config": config,
            "metrics": metrics or {},
            "leaves": records,
        }
        text = json.dumps(manifest, indent=1).encode()
        name = _of_first(f"{step:08d}-{_manifest_hash(text)}{'-best' if best else ''}")
        final = self.folder / name
        temporary = final if in_bucket(final) else self.folder / f".{step:08d}.tmp"
        if jax.process_index() == 0:
            for remains in filter(_is_remains, entries(self.folder)):
                remove_folder(remains)
        multihost_utils.sync_global_devices("checkpoint folder is free")
        self._writing = self._writer.submit(
            self._complete, _begin(temporary / "state", leaves), temporary, final, text
        )

    def wait(self) -> None:
        """Returns when what was saved last is complete.

        Raises:
          OSError: it could not be written, in some process. Nothing is left of it, and what was
            stored before is as it was.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        error = writing.exception()
        # No process goes on before the folder has its name, nor alone where one has failed.
        if not _all_processes(error is None):
            raise OSError(f"a checkpoint could not be written to {self.folder}: {error}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        if error is None:
            self.wait()
        else:  # of which other processes may know nothing: they are not waited for
            self._writer.shutdown()

    def _complete(self, begun: Any, temporary: AnyPath, final: AnyPath, manifest: bytes) -> None:
        first = jax.process_index() == 0
        try:
            begun.result()
            if first:
                write_atomically(temporary / MANIFEST, manifest)
                if temporary != final:
                    temporary.rename(final)
        except Exception:
            with contextlib.suppress(Exception):  # that the save failed is what is told
                remove_folder(temporary)  # it may be what fills the disk
            raise
        if first:
            self._prune(final)

    def restore(self, abstract: Any, *, best: bool = False) -> Restored | None:
        """The newest undamaged checkpoint, or the best; None where nothing was saved.

        Args:
          abstract: the state to fill, whose leaves say shape, dtype and sharding.
          best: restores what was last saved as the best, or the newest where nothing was.

        Raises:
          ValueError: the state's leaves are not the checkpoint's, or every checkpoint is damaged.
        """
        return self._restore(abstract, best, homes=("",), own="")

    def restore_params(self, abstract: Any, *, prefix: str = "", best: bool = True) -> Restored:
        """Some of the parameters as `TrainState.params` gave them: their running mean if any.

        Args:
          abstract: the parameters to fill, whose leaves say shape, dtype and sharding.
          prefix: where they lie in the saved parameters, such as "encoder."
          best: as in `restore`.

        Raises:
          ValueError: the leaves are not the checkpoint's, every checkpoint is damaged, or there
            is none.
        """
        own = f"trained.{prefix}"
        restored = self._restore(
            abstract, best, (f"average.{prefix}", own, f"frozen.{prefix}"), own
        )
        if restored is None:
            raise ValueError(f"{self.folder} holds no checkpoint; train the stage it belongs to")
        return restored

    def _restore(
        self, abstract: Any, best: bool, homes: tuple[str, ...], own: str
    ) -> Restored | None:
        """Leaves from the first home that has them; of `own` nothing may be left behind."""
        self.wait()
        paths = self._newest_first()
        if best:
            paths.sort(key=lambda path: not _is_best(path))
        damages = []
        for path in paths:
            try:
                manifest = _read_manifest(path)
                saved = manifest["leaves"]
                wanted = {
                    next((home + name for home in homes if home + name in saved), own + name): leaf
                    for name, leaf in _leaves(abstract).items()
                }
                _refuse_differences(saved, wanted, own)
                leaves = _read_leaves(path, wanted, saved)
            except _DamageError as damage:
                logger.warning("checkpoint %s is DAMAGED and passed over: %s", path, damage)
                damages.append(f"{path.name}: {damage}")
                continue
            if damages:
                logger.warning("fell back to the checkpoint of step %d", manifest["step"])
            state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
            return Restored(manifest["step"], state, manifest["config"], manifest["metrics"])
        if damages:
            raise ValueError(f"every checkpoint in {self.folder} is damaged: {'; '.join(damages)}")
        return None

    def _newest_first(self) -> list[AnyPath]:
        named = (path for path in entries(self.folder) if NAME.fullmatch(path.name))
        saved = {path: when for path in named if (when := _saved(path)) is not None}
        return sorted(saved, key=lambda path: (_step(path), saved[path]), reverse=True)

    def _prune(self, newest: AnyPath) -> None:
        latest, best = {}, []
        for path in self._newest_first():
            if _step(path) <= _step(newest):
                latest.setdefault(_step(path), path)
                best += [path] * _is_best(path)
        forever = [path for step, path in latest.items() if _due(step, self.keep_every)]
        kept = {newest, *list(latest.values())[: self.keep], *best[:1], *forever}
        for path in self._newest_first():
            if path not in kept:
                _remove(path)


class _DamageError(Exception):
    """What is on disk is not what was saved."""


def _step(path: AnyPath) -> int:
    return int(path.name.split("-")[0])


def _is_best(path: AnyPath) -> bool:
    return path.name.endswith("-best")


def _saved(path: AnyPath) -> int | None:
    """When a checkpoint was completed; None where it never was, or is being removed."""
    try:
        return modified(path / MANIFEST if in_bucket(path) else path)
    except FileNotFoundError:
        return None


def _is_remains(path: AnyPath) -> bool:
    """Whether it is what a save or a removal left that was killed."""
    if in_bucket(path):
        return NAME.fullmatch(path.name) is not None and _saved(path) is None
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _remove(path: AnyPath) -> None:
    """Removes a checkpoint, which is none from the first moment on."""
    if in_bucket(path):
        (path / MANIFEST).unlink()
        remove_folder(path)
    else:
        remove_folder(path.rename(path.with_name(f".{path.name}.tmp")))


def _of_first(text: str) -> str:
    """What the first process says, where each says something of the same length."""
    said = multihost_utils.broadcast_one_to_all(np.frombuffer(text.encode(), np.uint8))
    return np.asarray(said).tobytes().decode()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _begin(path: AnyPath, leaves: dict[str, Any]) -> Any:
    """A save that is under way, the arrays off their devices; its `result()` waits or raises."""
    try:
        return ocp.save_async(str(path), leaves)
    except Exception as error:  # here, too, it must be told in all processes at once
        failed = Future()
        failed.set_exception(error)
        return failed


def _all_processes(well: bool) -> bool:
    """Whether all goes well in every process, each of which must call this."""
    return bool(multihost_utils.process_allgather(np.array(well)).all())


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name, such as `trained.blocks.q_proj.kernel`."""
    named = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in named}


def _sha256(x: jax.Array) -> str:
    """The hash of dtype, shape and bytes of the global array, the same on every mesh."""
    digest = hashlib.sha256(f"{x.dtype}{x.shape}".encode())
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    here = x.is_fully_addressable or x.is_fully_replicated
    whole = np.asarray(x) if here else multihost_utils.process_allgather(x, tiled=True)
    digest.update(np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _manifest_hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _read_manifest(path: AnyPath) -> dict[str, Any]:
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise _DamageError(f"manifest.json cannot be read ({error})") from error
    if _manifest_hash(text) != path.name.split("-")[1]:
        raise _DamageError("manifest.json does not have the hash in the folder's name")
    return json.loads(text)


def _read_leaves(path: AnyPath, wanted: dict[str, Any], saved: dict[str, dict]) -> list[jax.Array]:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            leaves = ocp.load(str(path / "state"), wanted)
    except Exception as error:  # from damaged files Orbax raises nearly anything, at great length
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise _DamageError(f"Orbax cannot read it ({reason})") from error
    # From damaged metadata Orbax may return less than it was asked for, or no array at all.
    changed = [
        name
        for name in wanted
        if not isinstance(x := leaves.get(name), jax.Array) or _sha256(x) != saved[name]["sha256"]
    ]
    if changed:
        raise _DamageError(f"SHA-256 differs in {', '.join(changed)}")
    return [leaves[name] for name in wanted]


def _refuse_differences(saved: dict[str, dict], wanted: dict[str, Any], own: str) -> None:
    """Orbax would cast dtypes and take the file's placements without a word."""
    known = {*wanted, *(re.sub("^average", "trained", name) for name in wanted)}
    problems = [f"{n}: unexpected" for n in saved if n.startswith(own) and n not in known]
    for name, leaf in wanted.items():
        if name not in saved:
            problems.append(f"{name}: missing")
            continue
        of_file = f"{saved[name]['dtype']}{saved[name]['shape']}"
        of_state = f"{leaf.dtype}{list(leaf.shape)}"
        if of_file != of_state:
            problems.append(f"{name}: {of_file}, wanted {of_state}")
        if getattr(leaf, "sharding", None) is None:
            problems.append(f"{name}: wanted without a sharding")
    if problems:
        raise ValueError("the checkpoint does not fit the state:\n  " + "\n  ".join(problems))
