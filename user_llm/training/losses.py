"""What each stage minimises. Every loss is a mean over the tokens or events that count.

Of a part of a larger batch it is that part's share: given `of`, how much counts in all, the shares
add up to the loss of the whole. `metrics[COUNTS]` says how much counts in a batch.
"""

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

Metrics = dict[str, Any]
Sums = dict[str, tuple[Array, Array]]  # what is summed, and over how much
COUNTS = "counts"
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
    encoder: Encoder,
    batch: dict,
    key: Key[Array, ""],
    objective: ObjectiveConfig,
    of: Metrics | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of pre-training: by the next events, or by masked ones where both ways are read."""
    if isinstance(encoder, BERT4RecEncoder):
        return masked_event(encoder, batch, key, objective, of)
    return next_event(encoder, batch, key, objective, of)


def next_event(
    encoder: Encoder,
    batch: dict,
    key: Key[Array, ""],
    objective: ObjectiveConfig = SOFTMAX,
    of: Metrics | None = None,
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
    return events_told(jax.tree.map(lambda *x: sum(x), *sums), segments, objective, of)


def masked_event(
    encoder: BERT4RecEncoder,
    batch: dict,
    key: Key[Array, ""],
    objective: ObjectiveConfig,
    of: Metrics | None = None,
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
    sums = feature_losses(encoder, states, events, masked, keys, objective)
    return events_told(sums, segments, objective, of)


def feature_losses(
    encoder: Encoder,
    states: Float[Array, "B T D"],
    events: dict[str, Array],
    counts: Bool[Array, "B T"],
    keys: Any,
    objective: ObjectiveConfig,
) -> Sums:
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


def events_told(
    sums: Sums, segments: Int[Array, "B T"], objective: ObjectiveConfig, of: Metrics | None
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum of the features' mean losses, and each of them as a metric."""
    losses, counts = means(sums, of)
    weights = objective.weights
    loss = sum((weights.get(n, 1.0) * x for n, x in losses.items()), jnp.zeros(()))
    metrics: Metrics = {f"loss_{name}": x for name, x in losses.items()}
    metrics["events"] = (segments > 0).sum().astype(jnp.float32)
    return loss, metrics | {COUNTS: counts}


def means(sums: Sums, of: Metrics | None) -> tuple[dict[str, Array], dict[str, Array]]:
    """The sums over what they are of here, or `of` a larger batch, and how much that is here."""
    counts = {name: count for name, (_, count) in sums.items()}
    return {n: total / jnp.maximum((of or counts)[n], 1) for n, (total, _) in sums.items()}, counts


def answer(
    model: UserLLM, batch: dict, key: Key[Array, ""], of: Metrics | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """The tokens of the answers (see `answer_sums`), and what the streams ask for themselves."""
    sums = answer_sums(model, batch) | model.own_losses(batch)
    losses, counts = means(sums, of)
    return sum(losses.values(), jnp.zeros(())), {"tokens": counts["tokens"], COUNTS: counts}


def answer_tokens(model: UserLLM, batch: dict) -> tuple[Float[Array, ""], Metrics]:
    """The mean loss of the answers' tokens alone, and how many `tokens` they are."""
    losses, counts = means(answer_sums(model, batch), None)
    return losses["tokens"], counts


def answer_sums(model: UserLLM, batch: dict) -> Sums:
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
    return {"tokens": (total, weights.sum())}
