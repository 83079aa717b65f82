"""A part that differs from transformers' is found and named."""

import jax
import numpy as np
import pytest
import torch
from their_decoders import TOKENS, write_theirs

from user_llm.huggingface import import_decoder
from user_llm.huggingface.parity import first_difference


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A Gemma 3, its folder and its hidden states."""
    folder = tmp_path_factory.mktemp("gemma3")
    model = write_theirs(folder, "gemma3_text")
    with torch.no_grad():
        states = model(torch.tensor(TOKENS), output_hidden_states=True).hidden_states
    return folder, [state.numpy() for state in states]


def test_faithful_import_differs_nowhere(theirs):
    folder, states = theirs
    assert first_difference(import_decoder(folder), TOKENS, states) is None


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (lambda d: d.embed_tokens, "embed_tokens: "),
        (lambda d: d.layers.mlp.up_proj.kernel, "layers.1: "),
        (lambda d: d.layers.self_attn.q_norm.weight, "layers.1: "),
        (lambda d: d.norm.weight, "layers.2 or norm: "),
    ],
    ids=["embed_tokens", "up_proj", "q_norm", "norm"],
)
def test_broken_part_is_named(theirs, broken, named):
    folder, states = theirs
    decoder = import_decoder(folder)
    parameter = broken(decoder)
    wrong = np.array(parameter[...])
    wrong[TOKENS[0, 0] if "embed" in named else 1] *= 1.1  # of a stack the second layer
    parameter[...] = jax.numpy.asarray(wrong)
    assert first_difference(decoder, TOKENS, states).startswith(named + "differs by up to")


def test_states_of_another_depth_are_refused(theirs):
    folder, states = theirs
    with pytest.raises(ValueError, match="3 hidden states for 3 layers; give 4"):
        first_difference(import_decoder(folder), TOKENS, states[:-1])
