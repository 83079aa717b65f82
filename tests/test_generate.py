"""Cached, unrolled decoding against full recomputation, and against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from random_decoders import PECULIAR, random_decoder

from user_llm.config import CrossAttentionConfig, DecoderConfig, LoRAConfig
from user_llm.huggingface import import_decoder
from user_llm.inference.generate import Generator, grow, padded
from user_llm.inference.sampling import Sampling
from user_llm.models.attention import KVCache
from user_llm.models.decoder import Decoder
from user_llm.models.layers import Memory

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
)
PROMPTS = [[5, 6, 7], [9], list(range(20, 33)), [1, 2, 3, 4, 5, 6, 7, 8]]


@pytest.fixture(scope="module")
def decoder():
    cross = CrossAttentionConfig(every=2, heads=2)
    return random_decoder(CONFIG, cross_attention=cross, lora=LoRAConfig(rank=2))


@pytest.fixture(scope="module")
def generator(decoder):
    return Generator(decoder)


def random_memory(seed, tokens=5, holes=True):
    keys = jax.random.split(jax.random.key(seed), 2)
    shape = (len(PROMPTS), tokens, CONFIG.hidden_size)
    mask = jax.random.bernoulli(keys[1], 0.6, shape[:2]) if holes else jnp.ones(shape[:2], bool)
    return Memory(jax.random.normal(keys[0], shape), mask)


@jax.jit
def whole_forward(decoder, tokens, length, memory, prefix):
    x = decoder.embed(tokens)
    if prefix is not None:
        x = jnp.concatenate([prefix, x], axis=1)
        length += prefix.shape[1]
    return decoder.logits(decoder.hidden(x, memory))[0, length - 1]


def recompute(decoder, tokens, row, memory=None, prefix=None):
    """Logits after `tokens`, from the training forward of that row alone."""
    padded = np.zeros((1, 24), np.int32)
    padded[0, : len(tokens)] = tokens
    low = decoder.config.dtype
    before = None if prefix is None else prefix.tokens[row][prefix.mask[row]][None].astype(low)
    own = memory and Memory(memory.tokens[row : row + 1].astype(low), memory.mask[row : row + 1])
    return whole_forward(decoder, padded, len(tokens), own, before)


def follow(decoder, generator, steps, memory=None, prefix=None, atol=1e-5):
    """Greedy answers with their prompts, each step's logits those of the training forward."""
    texts = [list(prompt) for prompt in PROMPTS]
    logits, state = generator.start(PROMPTS, memory, prefix, new_tokens=steps)
    if state.slots < 32:  # the third prompt and prefix leave no room in the smallest bucket
        state = grow(state, 32)
    for _ in range(steps):
        wanted = jnp.stack([recompute(decoder, t, i, memory, prefix) for i, t in enumerate(texts)])
        assert logits.dtype == wanted.dtype == decoder.config.dtype
        ours, wanted = logits.astype(jnp.float32), wanted.astype(jnp.float32)
        np.testing.assert_allclose(ours, wanted, atol=atol)
        tokens = logits.argmax(-1).astype(jnp.int32)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        logits, state = generator.step(state, tokens)
    return texts


@pytest.mark.parametrize(
    "given", ["nothing", "memory", "whole prefix", "memory and prefix with holes"]
)
def test_each_step_gives_the_logits_of_the_training_forward(decoder, generator, given):
    memory = random_memory(2) if "memory" in given else None
    prefix = random_memory(3, holes="holes" in given) if "prefix" in given else None
    follow(decoder, generator, 4, memory, prefix)


def test_what_is_kept_of_a_memory_gives_the_same_answers(generator):
    memory = random_memory(2)
    kept = generator.crossed(memory)
    np.testing.assert_array_equal(
        generator.start(PROMPTS, kept)[0], generator.start(PROMPTS, memory)[0]
    )
    answers = [generator.generate(PROMPTS, max_new_tokens=12, memory=x) for x in (memory, kept)]
    assert answers[0] == answers[1] != generator.generate(PROMPTS, max_new_tokens=12)
    assert kept.nbytes == 2 * 2 * 4 * len(PROMPTS) * 5 * CONFIG.hidden_size + kept.mask.size


@pytest.mark.parametrize("kept", [1, 4])
def test_a_prompt_goes_on_from_what_is_kept_of_it(decoder, generator, kept):
    memory = random_memory(2)
    long = [[*prompt, *range(40, 40 + kept), 3, 1] for prompt in PROMPTS]
    wanted, whole = generator.start(long, memory)
    parts = [prompt[:-2] for prompt in long], [prompt[-2:] for prompt in long]
    _, state = generator.start(parts[0], memory)
    state = grow(state, 32)
    for _ in range(2):  # the second time from the same keys and values
        begun = np.array([len(prompt) for prompt in parts[0]], np.int32)
        logits, state = generator.extend(state._replace(lengths=begun), *padded(parts[1]))
        np.testing.assert_allclose(logits, wanted, atol=1e-5)
        np.testing.assert_array_equal(state.lengths, whole.lengths)
    tokens = logits.argmax(-1).astype(jnp.int32)
    steps = [generator.step(s, tokens)[0] for s in (state, grow(whole, 32))]
    np.testing.assert_allclose(*steps, atol=1e-5)


def test_window_slides_over_what_is_kept():
    decoder = random_decoder(CONFIG.model_copy(update=PECULIAR | {"num_hidden_layers": 2}))
    generator, prompt = Generator(decoder), list(range(20, 33))
    wanted, _ = generator.start([prompt])
    _, state = generator.start([prompt[:6]])
    logits, _ = generator.extend(state, *padded([prompt[6:]]))
    np.testing.assert_allclose(logits, wanted, atol=1e-5)


def test_window_slides_over_prompt_and_answer():
    config = CONFIG.model_copy(update=PECULIAR | {"num_hidden_layers": 2})
    decoder = random_decoder(config)
    texts = follow(decoder, Generator(decoder), 8)  # of which the window holds 5
    far = decoder.config.model_copy(update={"sliding_window": 50})
    unlike = nnx.merge(nnx.graphdef(random_decoder(far)), nnx.state(decoder))
    assert not np.allclose(
        recompute(unlike, texts[2][:13], 2), recompute(decoder, texts[2][:13], 2)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_window_slides_over_a_prefix_beside_a_memory(dtype):
    types = {"dtype": dtype, "param_dtype": dtype, "num_hidden_layers": 2}
    parts = {"cross_attention": CrossAttentionConfig(every=1, heads=2), "lora": LoRAConfig(rank=2)}
    decoder = random_decoder(CONFIG.model_copy(update=PECULIAR | types), **parts)
    atol = 1e-5 if dtype == "float32" else 0.15  # logits are capped at 3
    follow(decoder, Generator(decoder), 6, random_memory(2), random_memory(3), atol)


def test_answer_does_not_depend_on_its_neighbours(generator):
    memory, prefix = random_memory(2), random_memory(3)
    how = [Sampling(), Sampling(0.8, 0.9, seed=1), Sampling(1.0, seed=2), Sampling(2.0, seed=3)]
    options = {"max_new_tokens": 20}  # beyond the first bucket
    together = generator.generate(PROMPTS, memory=memory, prefix=prefix, sampling=how, **options)
    for i, prompt in list(enumerate(PROMPTS))[1:3]:
        one, before = (Memory(x.tokens[i : i + 1], x.mask[i : i + 1]) for x in (memory, prefix))
        alone = generator.generate([prompt], memory=one, prefix=before, sampling=how[i], **options)
        assert alone[0] == together[i]
    assert len({tuple(answer) for answer in together}) == len(PROMPTS)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_what_is_kept_of_one_user_stays_where_it_is(kv_heads):
    cache = KVCache.empty(batch=1, heads=kv_heads, slots=512, head_dim=16)

    def step(cache, queries, keys, position):
        cache = cache.write(keys, keys, position)
        return cache.attend(queries, jnp.arange(512) <= position[..., None]), cache

    queries, keys = jnp.ones((1, 1, 2, 16)), jnp.ones((1, 1, kv_heads, 16))
    program = jax.jit(step, donate_argnums=0).lower(cache, queries, keys, jnp.array([[5]]))
    assert program.compile().memory_analysis().temp_size_in_bytes < cache.keys.nbytes


def test_answer_ends_before_its_stop_token(generator):
    free = generator.generate(PROMPTS, max_new_tokens=12)
    stop = {free[0][5]}
    stopped = generator.generate(PROMPTS, max_new_tokens=12, stop=stop)
    for whole, cut in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stop]
        assert cut == (whole[: ends[0]] if ends else whole)


@pytest.mark.parametrize(
    "name", ["stories260K", pytest.param("stories3M", marks=pytest.mark.slow), "tinystories-656k"]
)
def test_greedy_answers_are_those_of_transformers(data_folder, name):
    folder = data_folder / "models" / name
    generator = Generator(import_decoder(folder))
    model = transformers.LlamaForCausalLM.from_pretrained(folder).float().eval()
    prompts = [[1, 403, 407, 261, 378], [1], [1, 317, 310, 290, 411, 270, 300]]
    ours = generator.generate(prompts, max_new_tokens=64)
    how = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
    for prompt, answer in zip(prompts, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), **how)[0, len(prompt) :]
        assert answer == theirs.tolist()
        assert len(answer) == 64


def test_repetition_is_punished_in_prompt_and_answer(data_folder):
    folder = data_folder / "models" / "stories260K"
    generator = Generator(import_decoder(folder))
    model = transformers.LlamaForCausalLM.from_pretrained(folder).float().eval()
    prompts, penalty = [[1, 403, 407, 261, 378], [1, 317]], 1.4
    how = [Sampling(repetition_penalty=penalty), Sampling()]
    ours = generator.generate(prompts, max_new_tokens=40, sampling=how)
    options = {"do_sample": False, "max_new_tokens": 40, "eos_token_id": None, "pad_token_id": 0}
    for prompt, answer, one in zip(prompts, ours, (penalty, 1.0), strict=True):
        wanted = model.generate(torch.tensor([prompt]), repetition_penalty=one, **options)
        assert prompt + answer == wanted[0].tolist()


def test_decoders_of_one_shape_share_their_programs(decoder, generator):
    assert Generator(decoder).graph == generator.graph
    assert (
        len({generator.graph, Generator(decoder).graph, Generator(decoder, int8=True).graph}) == 2
    )


def test_no_prompt_is_named(generator):
    with pytest.raises(ValueError, match="there is no prompt"):
        generator.generate([], max_new_tokens=1)


def test_rows_end_when_asked(generator):
    steps = generator.stream(PROMPTS, max_new_tokens=6)
    assert set(next(steps)) == {0, 1, 2, 3}
    assert set(steps.send({1, 3})) == {0, 2}
    assert set(steps.send(None)) == {0, 2}
    with pytest.raises(StopIteration):
        steps.send({0, 2})


def test_same_seed_repeats_and_another_does_not(generator):
    def answer(seed):
        how = Sampling(temperature=1.5, seed=seed)
        return generator.generate([[1, 2]], max_new_tokens=16, sampling=how)

    assert answer(0) == answer(0) != answer(1)


def test_all_problems_with_prompts_are_named_at_once(generator):
    memory = jax.tree.map(lambda x: x[:1], random_memory(2))
    for given in (memory, generator.crossed(memory)):
        with pytest.raises(ValueError) as error:
            generator.generate([[], [64, 1], [1] * 125], max_new_tokens=8, memory=given)
        for part in ("prompt 0 is empty", "tokens [64]", "133 positions of 128", "memory is of 1"):
            assert part in str(error.value)


def test_memory_for_a_decoder_without_cross_attention_is_refused():
    plain = Generator(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="no cross-attention"):
        plain.generate(PROMPTS, max_new_tokens=1, memory=random_memory(2))
    with pytest.raises(ValueError, match="no cross-attention"):
        plain.crossed(random_memory(2))


def test_one_sampling_for_each_prompt_is_asked_for(generator):
    with pytest.raises(ValueError, match="2 samplings for 4 prompts"):
        generator.generate(PROMPTS, max_new_tokens=1, sampling=[Sampling()] * 2)
