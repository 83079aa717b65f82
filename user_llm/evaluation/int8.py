"""What a decoder loses in int8: how well it foretells a text, and how often its choice changes."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.data.text import Tokenizer
from user_llm.evaluation import records
from user_llm.files import write_atomically
from user_llm.huggingface import import_decoder
from user_llm.inference.generate import forward

ROWS = 8  # pieces of text at a time


def loss(folder: Path, text: Path, out: Path, *, window: int = 256, pieces: int = 256) -> dict:
    """Both forms' figures over a text, written to `int8.json` in the folder `out`.

    Args:
      folder: a decoder with its tokenizer in Hugging Face's layout.
      window: tokens of a piece.
      pieces: of the text, from its beginning, at most.

    Raises:
      ValueError: the text is shorter than one piece.
    """
    decoder, tokens = import_decoder(folder), Tokenizer.load(folder)
    ids = tokens.prompts([text.read_text(encoding="utf-8", errors="replace")])[0]
    count = min(len(ids) // window, pieces)
    if not count:
        raise ValueError(f"{text} has {len(ids)} tokens; give a text of at least {window}")
    given = np.array(ids[: count * window], np.int32).reshape(count, window)
    forms = [nnx.split(decoder.unstacked(int8=int8)) for int8 in (False, True)]
    graphdefs, states = zip(*forms, strict=True)
    rows = [_foretell(graphdefs, states, given[i : i + ROWS]) for i in range(0, count, ROWS)]
    nll, rounded, divergence, same = (np.concatenate(x) for x in zip(*rows, strict=True))
    sizes = [sum(x.nbytes for x in jax.tree.leaves(state)) for state in states]
    result = {
        **records.provenance(),
        "decoder": folder.name,
        "text": text.name,
        "tokens": nll.size,
        "perplexity": {"float": math.exp(nll.mean()), "int8": math.exp(rounded.mean())},
        "divergence": float(divergence.mean()),
        "same_choice": float(same.mean()),
        "bytes": {"float": sizes[0], "int8": sizes[1]},
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "int8.json", json.dumps(result, indent=1))
    return result


@partial(jax.jit, static_argnums=0)
def _foretell(graphdefs, states, tokens):
    """What both forms say of each token but the first of its piece.

    -log of its probability in each, the Kullback-Leibler divergence of int8's, and whether both
    hold the same token likeliest.
    """
    logs = []
    for graphdef, state in zip(graphdefs, states, strict=True):
        single = nnx.merge(graphdef, state)
        views, x = single.views(np.arange(tokens.shape[1])[None]), single.embed(tokens)
        x, _ = forward(single, x, views, [None] * len(single.layers), None)
        logs.append(jax.nn.log_softmax(single.logits(x[:, :-1]).astype(jnp.float32)))
    told = [-jnp.take_along_axis(x, tokens[:, 1:, None], axis=-1)[..., 0] for x in logs]
    divergence = (jnp.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    return *told, divergence, logs[0].argmax(-1) == logs[1].argmax(-1)


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal."""
    told, size = result["perplexity"], result["bytes"]
    return (
        f"{result['decoder']} on {result['tokens']:,} tokens of {result['text']}\n"
        f"{'':8}{'perplexity':>12}{'MB':>10}\n"
        f"{'float':8}{told['float']:12.4f}{size['float'] / 1e6:10.2f}\n"
        f"{'int8':8}{told['int8']:12.4f}{size['int8'] / 1e6:10.2f}\n"
        f"int8: perplexity {told['int8'] / told['float'] - 1:+.2%}, divergence "
        f"{result['divergence']:.5f} nats, the same likeliest token in "
        f"{result['same_choice']:.2%} of places"
    )
