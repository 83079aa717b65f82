"""The streams by the name that a config calls them, and those that it names by where they are."""

import inspect
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from flax import nnx

from user_llm.models.streams.base import Given, Stream
from user_llm.models.streams.difference import DifferenceStream
from user_llm.models.streams.persona import PersonaStream
from user_llm.models.streams.timeline import TimelineStream

__all__ = ["STREAMS", "DifferenceStream", "Given", "PersonaStream", "Stream", "TimelineStream"]

STREAMS: dict[str, Callable[..., Stream]] = {
    "timeline": TimelineStream.of,
    "persona": PersonaStream.of,
    "difference": DifferenceStream.of,
}

COLUMNS = ("float32", "int32", "bool")  # what is of them on the device, too


def maker(stream: str) -> Callable[..., Stream]:
    """What makes the stream that a config names: a built-in one, or `module:Class`.

    Raises:
      ValueError: there is no such module, or nothing of that name in it to be called.
    """
    if stream in STREAMS:
        return STREAMS[stream]
    module, _, name = stream.partition(":")
    try:
        home = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and imports another that is not
        raise ValueError(
            f"system.streams: of {stream} there is no module {module}, neither in {Path.cwd()} nor "
            "installed; go to its folder, or put that on PYTHONPATH"
        ) from error
    if not callable(make := getattr(home, name, None)):
        raise ValueError(f"system.streams: {home.__file__ or module} has no class {name}")
    return cast(Callable[..., Stream], make)


def own_columns(streams: Iterable[str], data: Any) -> dict[str, np.ndarray]:
    """The columns that streams of one's own make of a data set (see `Stream`), by name.

    Raises:
      ValueError: one is not of the right type, or not of as many events.
    """
    columns: dict[str, np.ndarray] = {}
    for stream in (one for one in streams if one not in STREAMS):
        make = getattr(maker(stream), "columns", None)
        for name, values in make(data).items() if make else ():
            if values.dtype not in COLUMNS or len(values) != len(data.item):
                kinds = ", ".join(map(str, COLUMNS))
                raise ValueError(
                    f"system.streams: {stream} made a column {name} of {values.dtype} and "
                    f"{len(values)} rows; make it of {kinds}, with {len(data.item)} rows"
                )
            columns[name] = values
    return columns


def make_stream(stream: str, given: Given, *, rngs: nnx.Rngs) -> Stream:
    """The stream that a config names.

    Raises:
      ValueError: as `maker`, or what is made there is no stream.
    """
    make = maker(stream)
    # Of a module's class only the constructor tells what it takes.
    takes, own = (make.__init__, (make,)) if isinstance(make, type) else (make, ())
    try:
        inspect.signature(takes).bind(*own, given, rngs=rngs)
    except TypeError as error:
        raise ValueError(
            f"system.streams: {stream} is to be made by (given, rngs=): {error}"
        ) from error
    made = make(given, rngs=rngs)
    if not isinstance(made, nnx.Module):
        raise ValueError(f"system.streams: {stream} is no module of flax.nnx, but {made!r}")
    if not isinstance(made, Stream):
        raise ValueError(
            f"system.streams: {stream} lacks a width or a __call__ of a batch; see "
            "user_llm.models.streams.Stream"
        )
    return made
