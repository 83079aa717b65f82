"""An encoder for vocabularies that have grown: what was learnt of a value stays with the value.

Ids are places in a vocabulary, and change with it. Rows of tables, columns of heads and biases move
to the new ids of their values; the rows of new values stay as they were initialised.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Int

from user_llm.config import Config
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN, MISSING, UNKNOWN, Bag, Categorical, Numeric, Vocabulary
from user_llm.data.schema import AnyFeature
from user_llm.training.step import Params, flatten


class Known(Config):
    """What an encoder's parameters are numbered by: its features in order, their vocabularies."""

    features: tuple[AnyFeature, ...]
    predicted: tuple[str, ...]
    vocabularies: dict[str, Vocabulary]

    @classmethod
    def of(cls, dataset: Dataset) -> "Known":
        """What encoders of a data set are numbered by."""
        names = [feature.name for feature in dataset.inputs]
        return cls(
            features=tuple(dataset.schema[name] for name in names),
            predicted=dataset.schema.predicted,
            vocabularies={name: dataset.vocabularies[name] for name in names},
        )


class Numbered(NamedTuple):
    """A parameter with a place for each value of a feature along an axis."""

    axis: int
    sources: Int[np.ndarray, " V"]  # for each new id the old one, -1 where the value is new
    size: int  # of the axis before


def wanted(fresh: Params, old: Known, new: Known, sharding: Any) -> Params:
    """The old parameters that `grow` needs, as shapes and dtypes.

    Raises:
      ValueError: the features are not the same; all that differs is named.
    """
    refuse_differences(old, new)
    flat = {}
    for path, leaf, numbered in leaves(fresh, old, new):
        shape = list(leaf.shape)
        if numbered:
            shape[numbered.axis] = numbered.size
        flat[path] = jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=sharding)
    return traverse_util.unflatten_dict(flat)


def grow(fresh: Params, before: Params, old: Known, new: Known) -> Params:
    """The old parameters under the new ids; what is new of them is as in `fresh`.

    A standardised number's column is scaled, so that a raw value says what it said before. What is
    known of the items beside their ids (`Content`) is not part of it: it is the new data's.
    """
    flat, grown = flatten(before), {}
    for path, leaf, numbered in leaves(fresh, old, new):
        grown[path] = kept = flat[path]
        if numbered:
            there = np.expand_dims(
                numbered.sources >= 0, [i for i in range(leaf.ndim) if i != numbered.axis]
            )
            moved = jnp.take(kept, np.maximum(numbered.sources, 0), axis=numbered.axis)
            grown[path] = jnp.where(there, moved, leaf)
        elif path[:2] == ("embedding", "vectors"):
            feature = path[2]
            if isinstance(feature_of(new, feature), Numeric):
                was, now = old.vocabularies[feature], new.vocabularies[feature]
                scale = jnp.asarray(now.scale / was.scale, kept.dtype)
                shift = jnp.asarray((now.mean - was.mean) / was.scale, kept.dtype)
                grown[path] = jnp.stack([kept[0] * scale, kept[1] + kept[0] * shift])
    return traverse_util.unflatten_dict(grown)


def leaves(fresh: Params, old: Known, new: Known) -> Iterator[tuple[tuple, Any, Numbered | None]]:
    """The parameters that are taken over: path, fresh value, and how its ids have moved."""
    item = new.features[0].name
    for path, leaf in flatten(fresh).items():
        if path[:2] in (("embedding", "content"), ("embedding", "trained")):
            continue
        name, axis = "", 0
        if path[:2] == ("embedding", "tables"):
            name = path[2]
        elif path[0] == "heads":
            name, axis = path[1], leaf.ndim - 1
        elif path == ("item_bias",):
            name = item
        if name and isinstance(feature_of(new, name), Categorical | Bag):
            was = old.vocabularies[name]
            moved = sources(was, new.vocabularies[name])
            yield path, leaf, Numbered(axis, moved, KNOWN + len(was.values))
        else:
            yield path, leaf, None


def sources(old: Vocabulary, new: Vocabulary) -> Int[np.ndarray, " V"]:
    """For each id of the new vocabulary that of the same value in the old one, -1 for none."""
    as_text = any(isinstance(v, str) for values in (old.values, new.values) for v in values[:1])
    key = str if as_text else lambda value: value  # 7 is the "7" of a table that has words since
    place = {key(value): KNOWN + i for i, value in enumerate(old.values)}
    return np.array([MISSING, UNKNOWN, *(place.get(key(value), -1) for value in new.values)])


def feature_of(known: Known, name: str) -> AnyFeature:
    return next(feature for feature in known.features if feature.name == name)


def refuse_differences(old: Known, new: Known) -> None:
    """Raises a ValueError where two encoders do not read and predict the same features."""

    def described(known: Known) -> list[dict]:
        may_differ = {"min_count", "max_size", "slots"}
        return [feature.model_dump(exclude=may_differ) for feature in known.features]

    problems = []
    names = [[feature.name for feature in known.features] for known in (old, new)]
    if names[0] != names[1]:
        problems.append(f"features {', '.join(names[0])} there, {', '.join(names[1])} now")
    else:
        pairs = zip(described(old), described(new), strict=True)
        problems += [f"feature {a['name']!r}: {a} there, {b} now" for a, b in pairs if a != b]
    if set(old.predicted) != set(new.predicted):
        problems.append(
            f"predicted {', '.join(old.predicted)} there, {', '.join(new.predicted)} now"
        )
    if not problems:
        moved = sources(*(known.vocabularies[known.features[0].name] for known in (old, new)))
        if not (moved >= KNOWN).any():
            problems.append("no item occurs both there and now")
    if problems:
        raise ValueError("; ".join(problems))
