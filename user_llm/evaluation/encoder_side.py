"""Our side of the encoder's benchmark: what a stage of pre-training does, on packed rows."""

import math

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from user_llm.config import EncoderConfig, MeshConfig, ObjectiveConfig, OptimConfig
from user_llm.data import movielens_shape, pipeline
from user_llm.data.timelines import pack
from user_llm.evaluation.peers.work import Work, asked, measure, memory, timelines
from user_llm.models.encoders import AutoregressiveEncoder
from user_llm.sharding import make_mesh
from user_llm.training import losses
from user_llm.training.optim import make_optimizer
from user_llm.training.step import make_train_step, setup


def encoder_config(work: Work) -> EncoderConfig:
    """An encoder of that size; `mlp` is such that a block has as many parameters as the peer's."""
    # The peer's blocks have 6 D^2 + 6 D; ours 4 D^2 + 2 D, and 3 D for each of `mlp`.
    return EncoderConfig(
        window=work.window,
        embed=work.embed,
        layers=work.blocks,
        heads=work.heads,
        mlp=round((2 * work.embed + 4) / 3),
        dropout=work.dropout,
        temperature=work.temperature,
    )


def objective(work: Work) -> ObjectiveConfig:
    """The peer's loss: negatives drawn for each target alike, and their logits as they are."""
    if work.loss == "softmax":
        return ObjectiveConfig()
    return ObjectiveConfig(
        kind="sampled_softmax",
        negatives=work.negatives,
        shared=False,
        proposal="uniform",
        log_q=False,
    )


def packed(work: Work) -> pipeline.PackedTimelines:
    """Every timeline of the work in packed rows."""
    items, offsets = timelines(work)
    data = movielens_shape.dataset(items, offsets, work.catalog)
    ranges = np.stack([offsets[:-1], offsets[1:]], axis=1)
    return pipeline.PackedTimelines(data, *pack(ranges, work.window), work.window)


def targets(source: pipeline.PackedTimelines) -> int:
    """The events of an epoch that are told from others of their window."""
    return int(np.maximum(source.lengths - 1, 0).sum())


def trainer(work: Work, source: pipeline.PackedTimelines, mesh: Mesh):
    """A function that trains for some steps, and the parameters at the start."""
    chosen, users = objective(work), len(source.dataset.users)

    def loss(model, batch, key):
        value, metrics = losses.encoder_loss(model, batch, key, chosen)
        segments = batch["segments"]
        pairs = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        return value, metrics | {"targets": pairs.sum()}

    def make_encoder(rngs):
        return AutoregressiveEncoder(encoder_config(work), source.dataset.inputs, rngs=rngs)

    tx = make_optimizer(OptimConfig(learning_rate=work.learning_rate), work.steps)
    graphdef, abstract, init = setup(make_encoder, tx, nnx.Param, mesh)
    step = make_train_step(graphdef, loss, tx, abstract)
    key, state = jax.random.key(0), init(jax.random.key(0))
    rows, devices = work.users * len(source) / users, mesh.devices.size
    batches = pipeline.batches(
        source,
        batch_size=max(1, round(rows / devices)) * devices,  # as many targets a step
        steps=work.warmup + work.steps,
        seed=0,
        mesh=mesh,
    )

    def train(steps: int) -> tuple[int, float]:
        nonlocal state
        done = []
        with jax.set_mesh(mesh):
            for _ in range(steps):
                state, metrics = step(state, next(batches), key)
                done.append(metrics)
            done = jax.device_get(done)
        return sum(int(m["targets"]) for m in done), float(done[-1]["loss"])

    return train, abstract.trained


def main() -> None:
    baseline, work = memory(), asked()
    source = packed(work)
    train, params = trainer(work, source, make_mesh(MeshConfig()))

    def size(tree) -> int:
        return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))

    measure(
        train,
        work,
        baseline,
        targets_per_epoch=targets(source),
        parameters=size(params),
        block_parameters=size(params["layers"]) // work.blocks,
    )


if __name__ == "__main__":
    main()
