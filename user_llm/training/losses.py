"""What each stage minimises. Every loss is a mean over the tokens or events that count."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from user_llm.config import ObjectiveConfig
from user_llm.models.encoders.base import Encoder
from user_llm.models.encoders.bert4rec import BERT4RecEncoder
from user_llm.models.layers import picked
from user_llm.models.user_llm import UserLLM
from user_llm.training.objectives import (
    FIRST_KNOWN,
    Items,
    capped_softmax,
    chunk_size,
    item_loss,
    looks_at_few,
    softmax,
    summed,
)

Metrics = dict[str, Array]
SOFTMAX = ObjectiveConfig()


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    softcap: float | None = None,
) -> Float[Array, ""]:
    """Summed weighted -log softmax(hidden @ head)[target]; [B, T, V] never exists.

    With `softcap`, the logits are capped before.
    """
    size = chunk_size(head.shape[1])
    objective = softmax if softcap is None else partial(capped_softmax, softcap=softcap)
    return summed(objective, size, True, head, hidden, targets, weights, jax.random.key(0))


def encoder_loss(
    encoder: Encoder, batch: dict, key: Key[Array, ""], objective: ObjectiveConfig
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of pre-training: by the next events, or by masked ones where both ways are read."""
    if isinstance(encoder, BERT4RecEncoder):
        return masked_event(encoder, batch, key, objective)
    return next_event(encoder, batch, key, objective)


def next_event(
    encoder: Encoder,
    batch: dict,
    key: Key[Array, ""],
    objective: ObjectiveConfig = SOFTMAX,
) -> tuple[Float[Array, ""], Metrics]:
    """Every predicted feature of every next event in its segment, or of the next few.

    Source: arXiv 2402.13598, section 3.1.
    """
    keys = jax.random.split(key)
    events, segments = batch["events"], batch["segments"]
    states = encoder(events, segments, key=keys[0])
    sums = []
    for ahead in range(1, min(objective.next_k, segments.shape[1] - 1) + 1):
        targets = jax.tree.map(lambda x, ahead=ahead: x[:, ahead:], events)
        follows = (segments[:, ahead:] == segments[:, :-ahead]) & (segments[:, ahead:] > 0)
        sums.append(feature_losses(encoder, states[:, :-ahead], targets, follows, keys, objective))
    return combined(jax.tree.map(lambda *x: sum(x), *sums), segments, objective)


def masked_event(
    encoder: BERT4RecEncoder, batch: dict, key: Key[Array, ""], objective: ObjectiveConfig
) -> tuple[Float[Array, ""], Metrics]:
    """Every predicted feature of masked events (arXiv 1904.06690, sections 3.6 and 3.7).

    Masked is a random share, and the last event of every second timeline: it is what will be asked.
    """
    *keys, some_key, last_key = jax.random.split(key, 4)
    events, segments = batch["events"], batch["segments"]
    last = jnp.diff(segments, axis=1, append=-1) != 0
    masked = jax.random.bernoulli(some_key, objective.masked, segments.shape)
    masked |= last & jax.random.bernoulli(last_key, 0.5, segments.shape)
    masked &= segments > 0
    states = encoder(events, segments, key=keys[0], masked=masked)
    return combined(
        feature_losses(encoder, states, events, masked, keys, objective), segments, objective
    )


def feature_losses(
    encoder: Encoder,
    states: Float[Array, "B T D"],
    events: dict[str, Array],
    counts: Bool[Array, "B T"],
    keys: Any,
    objective: ObjectiveConfig,
) -> dict[str, tuple[Array, Array]]:
    """Per predicted feature the summed loss of telling events from states, and how many there are.

    `keys` are the one of the encoder's call and one for the objective.
    """
    sums = {}
    for feature in encoder.features:
        if not feature.predicted:
            continue
        targets = events[feature.name]
        weights = (counts & (targets >= FIRST_KNOWN)).astype(jnp.float32)
        if feature.name == encoder.item:
            items = (
                Items(feature.size, partial(encoder.item_vectors, keys[0]))
                if looks_at_few(objective, feature.size, targets)
                else encoder.item_vectors(keys[0])
            )
            queries = encoder.queries(states)
            total = item_loss(
                objective, items, queries, targets, weights, keys[1], encoder.candidates
            )
        else:
            head = encoder.heads[feature.name]
            kernel, bias = head.kernel[...], cast(nnx.Param, head.bias)[...]
            scaled = jnp.concatenate([states, jnp.ones_like(states[..., :1])], axis=-1)
            matrix = jnp.concatenate([kernel, bias[None]]).astype(states.dtype)
            total = cross_entropy(scaled, matrix, targets, weights)
        sums[feature.name] = total, weights.sum()
    return sums


def combined(
    sums: dict[str, tuple[Array, Array]], segments: Int[Array, "B T"], objective: ObjectiveConfig
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum of the features' mean losses, and each of them as a metric."""
    losses = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
    weights = objective.weights
    loss = sum((weights.get(n, 1.0) * x for n, x in losses.items()), jnp.zeros(()))
    metrics = {f"loss_{name}": x for name, x in losses.items()}
    return loss, metrics | {"events": (segments > 0).sum().astype(jnp.float32)}


def answer(model: UserLLM, batch: dict, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
    """The tokens of the answers (see `answer_tokens`), and what the streams ask for themselves."""
    loss, metrics = answer_tokens(model, batch)
    own = model.own_loss(batch)
    return loss if own is None else loss + own, metrics


def answer_tokens(model: UserLLM, batch: dict) -> tuple[Float[Array, ""], Metrics]:
    """The tokens of the answers, given prompt and user: `batch["weights"]` is 1 on them.

    `weights[b, t]` belongs to the prediction of `tokens[b, t]`.
    """
    targets, weights = batch["tokens"][:, 1:], batch["weights"][:, 1:]
    # What counts comes first, so that most chunks of a long prompt hold nothing else.
    order = jnp.argsort(weights <= 0, axis=1)
    hidden = picked(model.hidden(batch), order)
    targets, weights = picked(targets, order), picked(weights, order)
    softcap = model.decoder.config.final_logit_softcapping
    total = cross_entropy(hidden, model.speaker().head(), targets, weights, softcap)
    count = weights.sum()
    return total / jnp.maximum(count, 1), {"tokens": count}
