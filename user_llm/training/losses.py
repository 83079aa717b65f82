"""What each stage minimises. Every loss is a mean over the tokens or events that count."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from user_llm.models.encoders.autoregressive import AutoregressiveEncoder, unit
from user_llm.models.user_llm import UserLLM

CHUNK = 512  # rows of logits that exist at a time
FIRST_KNOWN = 2  # ids below are "missing" and "out of vocabulary"

Metrics = dict[str, Array]


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
) -> Float[Array, ""]:
    """Summed weighted -log softmax(hidden @ head)[target], a few steps of time at once.

    The logits of a chunk are made anew for its gradient, so [B, T, V] never exists. Chunks are cut
    along time, which no mesh axis splits.
    """
    batch, length = targets.shape
    size = max(1, min(length, CHUNK // batch))
    padding = -length % size

    def chunks(x):  # [B, T, ...] -> [T / size, B * size, ...]
        x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        x = jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)
        return x.reshape(x.shape[0], batch * size, *x.shape[3:])

    @jax.checkpoint
    def add(total, chunk):
        hidden, targets, weights = chunk
        logits = (hidden @ head).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - chosen
        return total + (losses * weights).sum(), None

    total, _ = jax.lax.scan(
        add, jnp.zeros((), jnp.float32), (chunks(hidden), chunks(targets), chunks(weights))
    )
    return total


def sampled_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    negatives: int,
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """The same with a softmax over the target and sampled items shared by the batch.

    Half of the negatives are drawn uniformly, half among the batch's own targets, which follow
    popularity. Each logit is corrected by the log of its expected count in the sample (log-Q,
    arXiv 1412.2007, section 3), so the expected normaliser is that of all known items. Draws that
    hit a row's own target do not count for that row.
    """
    size, flat = table.shape[0], weights.reshape(-1)
    frequency = jnp.zeros(size).at[targets.reshape(-1)].add(flat) / jnp.maximum(flat.sum(), 1e-9)
    proposal = jnp.where(jnp.arange(size) < FIRST_KNOWN, 0.0, 0.5 / (size - FIRST_KNOWN))
    proposal += 0.5 * frequency
    drawn = jax.random.categorical(key, jnp.log(proposal), shape=(negatives,))
    correction = jnp.log(negatives * proposal[drawn])
    logits = (hidden @ table[drawn].T).astype(jnp.float32) - correction  # [B, T, S]
    logits = jnp.where(drawn == targets[..., None], -jnp.inf, logits)
    chosen = (hidden * table[targets]).sum(-1).astype(jnp.float32)
    losses = jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), chosen) - chosen
    return (losses * weights).sum()


def next_event(
    encoder: AutoregressiveEncoder, batch: dict, key: Key[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Every predicted feature of every next event in its segment, summed over the features.

    Source: arXiv 2402.13598, section 3.1.
    """
    dropout_key, negatives_key = jax.random.split(key)
    events, segments = batch["events"], batch["segments"]
    states = encoder(events, segments, key=dropout_key)[:, :-1]
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    metrics = {"events": (segments > 0).sum().astype(jnp.float32)}
    for feature in encoder.features:
        if not feature.predicted:
            continue
        targets = events[feature.name][:, 1:]
        weights = (follows & (targets >= FIRST_KNOWN)).astype(jnp.float32)
        if feature.name != encoder.item:
            head = encoder.heads[feature.name]
            kernel, bias = head.kernel[...], cast(nnx.Param, head.bias)[...]
            scaled = jnp.concatenate([states, jnp.ones_like(states[..., :1])], axis=-1)
            matrix = jnp.concatenate([kernel, bias[None]])
            total = cross_entropy(scaled, matrix.astype(states.dtype), targets, weights)
        elif encoder.config.negatives:
            total = sampled_cross_entropy(
                unit(states.astype(jnp.float32)),
                encoder.item_vectors(),
                targets,
                weights,
                encoder.config.negatives,
                negatives_key,
            )
        else:
            states32 = unit(states.astype(jnp.float32))
            total = cross_entropy(states32, encoder.item_vectors().T, targets, weights)
        metrics[f"loss_{feature.name}"] = total / jnp.maximum(weights.sum(), 1)
    loss = sum((v for k, v in metrics.items() if k.startswith("loss_")), jnp.zeros(()))
    return loss, metrics


def answer(model: UserLLM, batch: dict, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
    """The tokens of the answers, given prompt and user: `batch["weights"]` is 1 on them.

    `weights[b, t]` belongs to the prediction of `tokens[b, t]`.
    """
    hidden = model.hidden(batch)[:, :-1]
    targets, weights = batch["tokens"][:, 1:], batch["weights"][:, 1:]
    total = cross_entropy(hidden, model.decoder.head(), targets, weights)
    count = weights.sum()
    return total / jnp.maximum(count, 1), {"tokens": count}
