"""The largest batch that a stage can meet, as shapes alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from user_llm.config import DIFFERENCE
from user_llm.data.dataset import gather
from user_llm.models.streams import STREAMS, own_columns
from user_llm.models.streams.difference import difference_width
from user_llm.runs import Run
from user_llm.sharding import batch_sharding


def pretraining(run: Run, mesh: Mesh) -> dict[str, Any]:
    """Rows that are full windows of events."""
    rows, window = run.experiment.pretrain.batch_size, run.experiment.encoder.window
    return placed(timelines(run, rows, window), mesh)


def finetuning(run: Run, name: str, mesh: Mesh) -> dict[str, Any]:
    """Rows with whole histories and with as many tokens as they may have, all of which count."""
    config, system = run.experiment.finetune, run.systems[name]
    rows = config.batch_size
    tokens = run.experiment.evaluation.text_tokens if system.told else config.max_tokens
    batch = timelines(run, rows, config.history)
    if "difference" in system.streams:
        width = difference_width(system, run.experiment.encoder, run.text_encoder_config) + 1
        batch["events"][DIFFERENCE] = of((rows, config.history, width), jnp.float32)
    for column, values in own_columns(system.streams, run.dataset).items():
        shape = (rows, config.history, *values.shape[1:])
        batch["events"][column] = of(shape, values.dtype)
    if (passages := run.passages(system)) is not None:
        shape = rows, passages.max_tokens
        batch["present"] = {"tokens": of(shape, jnp.int32), "mask": of(shape, jnp.bool_)}
    words = {"tokens": of((rows, tokens), jnp.int32), "weights": of((rows, tokens), jnp.float32)}
    return placed(batch | words, mesh)


def check_memories(run: Run) -> None:
    """Has streams of one's own read shapes, before anything is trained for them.

    Raises:
      ValueError: one makes no memory of the form that it tells (see `models.streams.Stream`).
    """
    for name, system in run.systems.items():
        if not {*STREAMS}.issuperset(system.streams):
            batch, make_model = finetuning(run, name, run.mesh), run.make_model(system)
            jax.eval_shape(lambda b, make=make_model: make(rngs=nnx.Rngs(0)).memories(b), batch)


def timelines(run: Run, rows: int, length: int) -> dict[str, Any]:
    """Events with all the features that the run's data set has, and their segments."""
    columns = jax.tree.map(lambda x: of(x.shape, x.dtype), run.dataset.columns)
    index = of((rows, length), jnp.int32)
    events = jax.eval_shape(lambda columns, index: gather(columns, index, jnp), columns, index)
    return {"events": events, "segments": index}


def of(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def placed(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: x.update(sharding=sharding), batch)


def held(tree: Any) -> int:
    """The bytes of a tree of placed shapes on one device, without what a layout adds."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
