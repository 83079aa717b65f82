"""Beam search against transformers' and against every possible answer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from random_decoders import PECULIAR, random_decoder
from their_decoders import write_theirs

from user_llm.config import CrossAttentionConfig, DecoderConfig
from user_llm.huggingface import import_decoder
from user_llm.inference.beams import beam_search, top_k
from user_llm.inference.generate import Generator
from user_llm.models.layers import Memory

PROMPTS = [[1, 403, 407, 261, 378], [1, 317]]


@pytest.fixture(scope="module")
def stories(data_folder):
    folder = data_folder / "models" / "stories260K"
    model = transformers.LlamaForCausalLM.from_pretrained(folder).float().eval()
    return Generator(import_decoder(folder)), model


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("beams", [1, 4])
def test_answers_are_those_of_transformers(stories, beams, length_penalty):
    generator, model = stories
    stop = 426  # a full stop, which comes soon
    ours = beam_search(
        generator,
        PROMPTS,
        beams=beams,
        max_new_tokens=24,
        stop={stop},
        length_penalty=length_penalty,
    )
    how = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": stop, "pad_token_id": 0}
    for prompt, answers in zip(PROMPTS, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=length_penalty,
            output_scores=True,
            return_dict_in_generate=True,
            **how,
        )
        wanted = []
        for row in theirs.sequences[:, len(prompt) :].tolist():
            wanted.append(row[: row.index(stop)] if stop in row else row)
        assert [answer.tokens for answer in answers] == wanted
        if beams > 1:
            scores = [answer.score for answer in answers]
            np.testing.assert_allclose(scores, theirs.sequences_scores, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", ["nothing", "memory and prefix"])
def test_search_that_keeps_every_first_token_finds_the_best_pairs(given, dtype):
    config = DecoderConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=32,
        dtype=dtype,
        param_dtype=dtype,
    )
    cross = CrossAttentionConfig(every=1, heads=2) if "memory" in given else None
    decoder = random_decoder(config.model_copy(update=PECULIAR), cross_attention=cross)
    prompt, pairs = [3, 1, 2, 5], list(itertools.product(range(6), repeat=2))
    tokens = jnp.array([[*prompt, *pair] for pair in pairs])
    x, memory, context = decoder.embed(tokens), None, {}
    if cross:
        user = jax.random.normal(jax.random.key(0), (1, 4, 16), dtype)
        mask = jnp.array([[True, False, True, True]])
        context = {"memory": Memory(user, mask), "prefix": Memory(-user, mask)}
        memory = Memory(*(jnp.repeat(part, len(pairs), axis=0) for part in context["memory"]))
        before = jnp.broadcast_to(-user[:, mask[0]], (len(pairs), 3, 16))
        x = jnp.concatenate([before, x], axis=1)
    logits = jax.jit(lambda d, x, m: d.logits(d.hidden(x, m)))(decoder, x, memory)
    logs = jax.nn.log_softmax(logits[:, -3:-1].astype(jnp.float32))
    gains = jnp.take_along_axis(logs, tokens[:, len(prompt) :, None], 2)
    scores = np.asarray(gains[..., 0].mean(1))
    best = np.argsort(-scores)[:6]
    found = beam_search(Generator(decoder), [prompt], beams=6, max_new_tokens=2, **context)[0]
    wide = dtype == "float32"
    if wide:  # else the order of those that are nearly alike is that of their rounding
        assert [answer.tokens for answer in found] == [list(pairs[i]) for i in best]
    own = [scores[pairs.index(tuple(answer.tokens))] for answer in found]
    for wanted in (own, scores[best]):
        score = [answer.score for answer in found]
        np.testing.assert_allclose(score, wanted, atol=1e-5 if wide else 0.03)


def test_search_goes_on_where_a_small_vocabulary_ends_many_answers():
    config = DecoderConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=1, max_position_embeddings=32
    )
    found = beam_search(
        Generator(random_decoder(config)), [[1], [2]], beams=4, max_new_tokens=6, stop={0}
    )
    for answers in found:
        assert len({tuple(answer.tokens) for answer in answers}) == 4
        assert not any(0 in answer.tokens for answer in answers)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3_text"])
def test_other_families_answer_as_in_transformers(tmp_path, family):
    model = write_theirs(tmp_path, family)
    generator, prompts = Generator(import_decoder(tmp_path)), [[5, 6, 7], list(range(20, 34))]
    greedy = generator.generate(prompts, max_new_tokens=16)
    beams = beam_search(generator, prompts, beams=3, max_new_tokens=16, stop={9})
    how = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 0}
    for prompt, answer, answers in zip(prompts, greedy, beams, strict=True):
        asked = torch.tensor([prompt])
        theirs = model.generate(asked, eos_token_id=None, **how)[0, len(prompt) :]
        assert answer == theirs.tolist()
        theirs = model.generate(asked, num_beams=3, eos_token_id=9, **how)[
            0, len(prompt) :
        ].tolist()
        assert answers[0].tokens == (theirs[: theirs.index(9)] if 9 in theirs else theirs)


def test_no_beams_are_refused(stories):
    with pytest.raises(ValueError, match="beams=0 must be between 1 and 511"):
        beam_search(stories[0], PROMPTS, beams=0, max_new_tokens=4, stop={2})


@pytest.mark.parametrize("width", [700, 768, 1000])  # sorted whole, in whole blocks, in blocks
def test_top_k_is_that_of_jax(width):
    x = np.random.default_rng(0).integers(0, 40, (5, width)).astype(np.float32)
    x[1], x[2, 1:] = -np.inf, -np.inf
    for one, other in zip(top_k(jnp.asarray(x), 3), jax.lax.top_k(x, 3), strict=True):
        np.testing.assert_array_equal(one, other)
