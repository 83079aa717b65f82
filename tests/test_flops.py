"""Operations by formula, against every product that JAX traces, and against XLA's own count."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_made import FEATURES
from models_made import random_events as drawn_events
from products_traced import products

from user_llm.config import (
    CrossAttentionConfig,
    DecoderConfig,
    EncoderConfig,
    LoRAConfig,
    PerceiverConfig,
    SystemConfig,
)
from user_llm.evaluation import flops
from user_llm.evaluation.answer_costs import Shape, Sizes, plain, rows
from user_llm.inference.generate import Generator, _extend, _prefill, _step
from user_llm.models.attention import KVCache
from user_llm.models.decoder import Decoder
from user_llm.models.encoders import ENCODERS
from user_llm.models.layers import Memory
from user_llm.models.perceiver import Perceiver
from user_llm.models.streams import TimelineStream
from user_llm.models.user_llm import Projector, UserLLM

DECODER = DecoderConfig(
    vocab_size=640,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=128,
)
CROSS = CrossAttentionConfig(every=2, heads=4, kv_heads=2)
ENCODER = EncoderConfig(window=40, embed=96, feature_embed=24, layers=1, heads=4, mlp=256)
PERCEIVER = PerceiverConfig(latents=8, layers=1, heads=4)
KINDS = {kind: {"kind": kind} for kind in ENCODERS} | {
    "gated": {"gated": True},
    "content": {"content": ("genres", "price")},
}
NEAR = 0.1  # what is no product


def random_events(seed, *shape):
    return jax.tree.map(jnp.asarray, drawn_events(seed, *shape))


def by_xla(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def unseen(tokens, width, layers):
    """What a program multiplies although no query may see it: it takes whole squares of scores."""
    return layers * 4 * width * (tokens**2 - flops.pairs(tokens))


def make(module, *args, **kwargs):
    return module(*args, rngs=nnx.Rngs(0), **kwargs)


@pytest.mark.parametrize("before, window", list(product([0, 1, 5], [None, 1, 3, 20])))
def test_pairs_are_those_that_a_mask_shows(before, window):
    at = np.arange(before + 7)
    seen = (at <= at[:, None]) & (at > at[:, None] - (window or 100))
    assert flops.pairs(7, before, window) == seen[before:].sum()


@pytest.fixture(scope="module", params=KINDS)
def encoder(request):
    config = ENCODER.model_copy(update=KINDS[request.param])
    known = {"trained": np.ones(11, bool), **random_events(1, 11)}
    return make(ENCODERS[config.kind], config, FEATURES, known)


def test_encoder(encoder):
    config, events = encoder.config, 40
    formula = flops.encoder(config, FEATURES, events)
    if encoder.causal:
        formula += unseen(events, config.embed, config.layers)
    given = random_events(0, 1, events), jnp.ones((1, events), jnp.int32)
    assert products(encoder, *given) == formula
    assert by_xla(encoder, *given) == pytest.approx(formula, rel=NEAR)


def test_new_events_of_a_causal_encoder(encoder):
    config = encoder.config
    if not encoder.causal:
        with pytest.raises(ValueError, match="bert4rec encoder reads both ways"):
            flops.encoder(config, FEATURES, 1, 39)
        return
    at = jnp.array([[config.window - 1]])
    given = random_events(0, 1, 1), at, encoder.empty(1)
    formula = flops.encoder(config, FEATURES, 1, config.window - 1)  # the last sees all slots
    assert products(encoder.extend, *given) == formula
    each = [flops.encoder(config, FEATURES, 1, before) for before in range(9)]
    content = flops.embedding(config, FEATURES, 0)  # is made anew at each call
    assert sum(each) - 8 * content == flops.encoder(config, FEATURES, 9)


def test_perceiver_and_projector():
    width, tokens = 192, 40
    stream, mask = jnp.ones((1, tokens, width)), jnp.ones((1, tokens), bool)
    for layers in (1, 3):
        config = PERCEIVER.model_copy(update={"layers": layers})
        perceiver = make(Perceiver, config, width)
        assert products(perceiver, stream, mask) == flops.perceiver(config, width, tokens)
    perceiver, formula = (
        make(Perceiver, PERCEIVER, width),
        flops.perceiver(PERCEIVER, width, tokens),
    )
    assert by_xla(perceiver, stream, mask) == pytest.approx(formula, rel=NEAR)
    assert flops.perceiver(PerceiverConfig(latents=0), width, tokens) == 0
    projector, formula = make(Projector, width, 128), flops.projector(width, 128, tokens)
    assert products(projector, stream) == formula
    assert by_xla(projector, stream) == pytest.approx(formula, rel=NEAR)


def test_stream_makes_the_encoder_s_embeddings_twice_at_most():
    stream = make(TimelineStream, make(ENCODERS["autoregressive"], ENCODER, FEATURES), PERCEIVER)
    events, tokens = 40, {"events": random_events(0, 1, 40), "segments": jnp.ones((1, 40), int)}
    formula = flops.encoder(ENCODER, FEATURES, events) + flops.perceiver(PERCEIVER, 192, events)
    formula += unseen(events, ENCODER.embed, 1) + 2 * events * 192  # the newest is picked
    assert products(stream, tokens) == formula + flops.embedding(ENCODER, FEATURES, events)
    assert by_xla(stream, tokens) == pytest.approx(formula, rel=NEAR)


def shaped(**parts):
    """An unstacked decoder's graph and parameters, without a value."""
    config = parts.pop("config", DECODER)
    decoder = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), **parts).unstacked())
    return nnx.split(decoder)


class Graph:
    def __init__(self, graphdef):
        self.merge = partial(nnx.merge, graphdef)


VARIANTS = {
    "plain": {},
    "crossed": {"cross_attention": CROSS},
    "lora": {"lora": LoRAConfig(rank=4, targets=("[qv]_proj", "mlp.*"))},
    "untied": {"config": DECODER.model_copy(update={"tie_word_embeddings": False})},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoder(variant):
    parts, tokens, memory, slots = VARIANTS[variant], 24, 9, 48
    graphdef, state = shaped(**parts)
    params, graph = nnx.to_pure_dict(state), Graph(graphdef)
    crossed = "cross_attention" in parts
    known = Memory(jnp.ones((1, memory, 128)), jnp.ones((1, memory), bool)) if crossed else None
    lora = parts.get("lora", LoRAConfig())
    prefill = partial(_prefill.__wrapped__, graph)
    given = params, jnp.ones((1, tokens), jnp.int32), jnp.array([tokens]), known, None

    def read(new, before=0):
        total = flops.decoder(DECODER, new, before, lora) + flops.head(DECODER)
        return total + (flops.cross_attention(DECODER, CROSS, new, memory) if crossed else 0)

    formula = read(tokens) + unseen(tokens, 6 * 32, 2)
    formula += flops.cross_keys_values(DECODER, CROSS, memory) if crossed else 0
    assert products(prefill, *given) == formula
    assert by_xla(prefill, *given) == pytest.approx(formula, rel=NEAR)

    _, begun = jax.eval_shape(prefill, *given)
    caches = [KVCache.empty(1, 2, slots, 32) for _ in range(2)]
    begun = begun._replace(caches=caches)
    step, further = partial(_step.__wrapped__, graph), partial(_extend.__wrapped__, graph)
    formula = read(1, slots - 1)  # the program's new token meets all slots
    assert products(step, params, begun, jnp.ones(1, jnp.int32)) == formula
    assert by_xla(step, params, begun, jnp.ones(1, jnp.int32)) == pytest.approx(formula, rel=NEAR)
    rest = params, begun, jnp.ones((1, 8), jnp.int32), jnp.array([8])
    formula = read(8, slots - 8) + 2 * 4 * 6 * 32 * (8 * slots - flops.pairs(8, slots - 8))
    assert products(further, *rest) == formula


def test_a_prompt_costs_what_its_tokens_cost_one_by_one():
    sliding = DECODER.model_copy(
        update={"sliding_window": 5, "layer_types": ("sliding_attention", "full_attention")}
    )
    for config in (DECODER, sliding):
        each = [flops.decoder(config, 1, before) for before in range(30)]
        assert flops.decoder(config, 30) == sum(each)
        assert flops.decoder(config, 20, 10) == sum(each[10:])
    assert flops.decoder(sliding, 30) < flops.decoder(DECODER, 30)


def test_long_texts_cost_what_is_published():
    """2 N T and 2 L d T^2 (reference formulas), N the parameters that multiply each token."""
    tokens, each = 4000, 2 * (128 * 32 * (6 + 2 + 2 + 6) + 3 * 128 * 384)
    wanted = 2 * each * tokens + 2 * 2 * 6 * 32 * tokens**2
    assert flops.decoder(DECODER, tokens) == pytest.approx(wanted, rel=1e-3)


SYSTEM = SystemConfig(perceiver=PERCEIVER, cross_attention=CROSS)


@pytest.mark.parametrize("fusion", ["cross_attention", "soft_prompt"])
def test_an_answer_costs_what_its_program_multiplies(fusion):
    system = SYSTEM.model_copy(update={"fusion": fusion})
    shape, events, question = Shape(system, DECODER, ENCODER, FEATURES), 40, 12
    model = make(UserLLM, system, DECODER, ENCODER, FEATURES)
    batch = {"events": random_events(0, 1, events), "segments": jnp.ones((1, events), jnp.int32)}
    memory = products(lambda batch: model.fuse(model.memories(batch)), batch)
    twice = flops.embedding(ENCODER, FEATURES, events)
    assert shape.memory(events) == memory - twice - unseen(events, ENCODER.embed, 1)

    generator = Generator(model.decoder)
    found = jax.eval_shape(lambda: model.fuse(model.memories(batch)))
    known = {"memory": found} if fusion == "cross_attention" else {"prefix": found}
    prompt = jnp.ones((1, question), jnp.int32), jnp.array([question])

    def first(**known):
        return generator.prefill(*prompt, **known)[0]

    read = question if fusion == "cross_attention" else question + shape.memory_tokens(events)
    asked = rows(shape, Sizes(events, question, 30, 18, 5))
    cold, warm, keys, text, kept = asked
    traced = products(lambda known: first(**known), known) - unseen(read, 6 * 32, 2)
    assert warm["flops"] == shape.first_token(question, events) == traced
    _, begun = jax.eval_shape(lambda known: generator.prefill(*prompt, **known), known)
    further = partial(_extend.__wrapped__, generator.graph, generator.params)
    before = read - question
    program = products(further, begun._replace(lengths=jnp.array([before])), *prompt)
    assert keys["flops"] == program - 2 * 4 * 6 * 32 * (
        question * read - flops.pairs(question, before)
    )
    assert cold["flops"] == warm["flops"] + shape.memory(events)
    assert (cold["prompt_tokens"], text["prompt_tokens"]) == (read, 30)
    assert kept["flops"] == flops.decoder(DECODER, 12, 18) + flops.head(DECODER)
    alone = plain(shape, Sizes(events, question, None, 0, 0))
    assert alone["flops"] == products(first) - unseen(question, 6 * 32, 2)
    assert warm["step_flops"] > alone["step_flops"]


def test_bytes_are_those_of_the_arrays():
    shape = Shape(SYSTEM, DECODER, ENCODER, FEATURES)
    model = make(UserLLM, SYSTEM, DECODER, ENCODER, FEATURES)
    batch = {"events": random_events(0, 1, 7), "segments": jnp.ones((1, 7), jnp.int32)}
    memory = model.fuse(model.memories(batch))
    prompt = jnp.ones((1, 5), jnp.int32), jnp.array([5])
    _, state = Generator(model.decoder).prefill(*prompt, memory)

    def held(tree):
        return sum(x.nbytes for x in jax.tree.leaves(tree))

    assert shape.memory_bytes(7) == held(memory)
    assert shape.key_bytes(7) == held(state.crossed.layers)
    assert shape.cache_bytes(5) == held(state.caches)


def test_shape_survives_json():
    shape = Shape(SYSTEM, DECODER, ENCODER, FEATURES)
    assert Shape.of(shape.described()) == shape
