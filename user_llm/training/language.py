"""How well a decoder foretells plain text, as it did before it met users."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from user_llm.data.pipeline import chunks
from user_llm.data.text import Tokenizer
from user_llm.sharding import batch_sharding
from user_llm.training import losses

ROW = 256  # tokens
ROWS = 32  # at a time


def foreteller(
    make_model: Callable[..., Any], texts: Sequence[str], tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[dict], dict[str, float]]:
    """A function of the parameters of a model's decoder: its figures on these texts.

    `perplexity` is by token, and so by tokenizer; `bits_per_byte` compares all.
    """
    encoded = tokenizer.prompts(texts)
    tokens, weights = rows([[*ids, tokenizer.eos] for ids in encoded])
    size = sum(len(text.encode()) for text in texts)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)).decoder))

    @jax.jit
    def loss(params, tokens, weights):
        decoder = nnx.merge(graphdef, params)
        hidden, head = decoder.hidden(decoder.embed(tokens))[:, :-1], decoder.head()
        softcap = decoder.config.final_logit_softcapping
        return losses.cross_entropy(hidden, head, tokens[:, 1:], weights[:, 1:], softcap)

    def foretell(params: dict) -> dict[str, float]:
        total = 0.0
        with jax.set_mesh(mesh):
            for piece, length in chunks(np.arange(len(tokens)), ROWS):
                there = np.arange(ROWS) < length
                given = tokens[piece], weights[piece] * there[:, None]
                total += float(loss(params, *jax.device_put(given, batch_sharding(mesh))))
        nats = total / weights[:, 1:].sum()
        return {"perplexity": math.exp(nats), "bits_per_byte": total / math.log(2) / size}

    return foretell


def rows(
    documents: Sequence[Sequence[int]],
) -> tuple[Int[np.ndarray, "R T"], Float[np.ndarray, "R T"]]:
    """The documents one after the other in rows: tokens, and weights of 1 on what is foretold.

    Each row begins with the token that ends the one before it, so that all but the first of all are
    foretold once.
    """
    ids = np.concatenate([np.asarray(document, np.int32) for document in documents])
    count = max(1, -(-(len(ids) - 1) // (ROW - 1)))
    at = np.arange(count)[:, None] * (ROW - 1) + np.arange(ROW)
    there = at < len(ids)
    return np.where(there, ids[np.minimum(at, len(ids) - 1)], 0), there.astype(np.float32)
