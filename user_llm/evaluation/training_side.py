"""Our side of the benchmark of training: the step that fine-tuning takes, batch after batch.

With a user, the system is the published one around the decoder. A memory that is given is random,
as wide as the Perceiver leaves it: what is at work is the decoder's side, from projector to gate.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from user_llm.config import MeshConfig, OptimConfig, SystemConfig
from user_llm.evaluation.inference_subject import published, random_events
from user_llm.evaluation.peers.training import Training, asked, measure
from user_llm.evaluation.peers.work import memory
from user_llm.huggingface import decoder_config, load_decoder
from user_llm.models.layers import Memory
from user_llm.models.user_llm import UserLLM, trained
from user_llm.sharding import batch_sharding, make_mesh
from user_llm.training import losses
from user_llm.training.optim import make_optimizer
from user_llm.training.step import graft, make_train_step, setup


class Given(UserLLM):
    """A system whose users are encoded elsewhere: what its stream would make is in the batch."""

    def __init__(self, *args: Any, rngs: nnx.Rngs):
        super().__init__(*args, rngs=rngs)
        self.streams = nnx.Dict({})

    def memories(self, batch: dict[str, Any]) -> dict[str, Memory]:
        tokens = batch["memory"]
        return {"timeline": Memory(tokens, jnp.ones(tokens.shape[:2], bool))}


def trainer(work: Training, mesh: Mesh):
    """A function that trains on a batch of tokens, and how many parameters it moves."""
    decoder = decoder_config(work.folder).model_copy(update={"remat": work.remat})
    shape = published(decoder)
    system = shape.system if work.reads else SystemConfig(streams=())
    kind = Given if work.reads == "given" else UserLLM

    def make(rngs: nnx.Rngs) -> UserLLM:
        return kind(system, decoder, shape.encoder, shape.features, rngs=rngs)

    optim = OptimConfig(
        learning_rate=work.learning_rate, beta1=work.beta1, beta2=work.beta2, clip=work.clip
    )
    tx = make_optimizer(optim, work.warmup + work.steps)
    graphdef, abstract, init = setup(make, tx, trained(system), mesh)
    step = make_train_step(graphdef, losses.answer, tx, abstract)
    key, state = jax.random.key(0), init(jax.random.key(0))
    weights = load_decoder(work.folder, state.trained["decoder"])
    state = state._replace(trained=graft(state.trained, {"decoder": weights}))

    placement = batch_sharding(mesh)
    own: dict[str, Any] = {"weights": np.ones((work.batch, work.length), np.float32)}
    if work.reads == "encoded":
        own |= random_events(shape.features, work.batch, work.events)
    elif work.reads:
        size = (work.batch, shape.memory_tokens(work.events), 2 * shape.encoder.embed)
        own["memory"] = np.random.default_rng(0).standard_normal(size, np.float32)
    own = jax.device_put(own, placement)

    def train(tokens: np.ndarray) -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            batch = own | {"tokens": jax.device_put(tokens, placement)}
            state, metrics = jax.block_until_ready(step(state, batch, key))
        return float(metrics["loss"])

    return train, sum(math.prod(x.shape) for x in jax.tree.leaves(abstract.trained))


def main() -> None:
    baseline, work = memory(), asked()
    train, parameters = trainer(work, make_mesh(MeshConfig()))

    def peak() -> int:
        stats = jax.devices()[0].memory_stats()  # the CPU has none
        return stats["peak_bytes_in_use"] if stats else memory(peak=True) - baseline

    measure(train, work, peak, parameters=parameters)


if __name__ == "__main__":
    main()
