"""Streams x fusion x decoder: what reaches the logits, and which parameters a strategy moves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from fusions_made import BATCH, CROSSED, NAMED, PLAIN, SOFT, changed, logits, make, with_decoder_of
from models_made import CROSS, DECODER, ENCODER, FEATURES, PERCEIVER, random_batch, random_model

from user_llm.config import (
    DIFFERENCE,
    TEXT_VECTOR,
    DifferenceConfig,
    LoRAConfig,
    OptimConfig,
    TextEncoderConfig,
)
from user_llm.inference.generate import Generator
from user_llm.models.decoder import Decoder
from user_llm.models.user_llm import UserLLM, check, trained
from user_llm.training import losses
from user_llm.training.optim import make_optimizer
from user_llm.training.step import make_train_step, setup

LORA = LoRAConfig(rank=2, targets=("q_proj", "up_proj"))


@pytest.fixture(scope="module")
def crossed():
    return random_model(make(CROSSED))


def test_a_closed_gate_leaves_the_plain_decoder_bit_for_bit(crossed):
    plain = with_decoder_of(random_model(make(PLAIN), seed=1), crossed)
    assert np.abs(logits(crossed, BATCH) - logits(plain, BATCH)).max() > 0.1
    crossed = nnx.clone(crossed)
    crossed.decoder.cross.gate[...] = jnp.zeros_like(crossed.decoder.cross.gate[...])
    np.testing.assert_array_equal(logits(crossed, BATCH), logits(plain, BATCH))


def test_without_streams_the_user_does_not_matter():
    plain = random_model(make(PLAIN))
    assert not plain.streams
    assert plain.decoder.cross is None
    np.testing.assert_array_equal(logits(plain, BATCH), logits(plain, {"tokens": BATCH["tokens"]}))


@pytest.mark.parametrize("system", [CROSSED, SOFT], ids=["cross_attention", "soft_prompt"])
def test_logits_follow_the_own_timeline_and_not_that_of_others(system):
    model, tokens = random_model(make(system)), np.tile(BATCH["tokens"][:1], (3, 1))
    batch = BATCH | {"tokens": tokens}
    before = np.asarray(logits(model, batch))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(before[a] - before[b]).max() > 1e-2  # the same text, another user
    other = random_batch(1, (3, 2, 4))
    mixed = {n: np.concatenate([x[:2], other["events"][n][2:]]) for n, x in BATCH["events"].items()}
    segments = np.concatenate([BATCH["segments"][:2], other["segments"][2:]])
    after = np.asarray(logits(model, batch | {"events": mixed, "segments": segments}))
    np.testing.assert_array_equal(after[:2], before[:2])
    assert (after[2] != before[2]).any()


def test_memory_depends_on_the_user_alone(crossed):
    memories = jax.jit(lambda model, batch: model.memories(batch))
    user = {"events": BATCH["events"], "segments": BATCH["segments"]}
    found = memories(crossed, user)["timeline"]
    turned = memories(crossed, jax.tree.map(lambda x: x[::-1], user))["timeline"]
    np.testing.assert_array_equal(turned.tokens[::-1], found.tokens)
    assert np.isfinite(found.tokens).all()
    assert found.tokens.shape == (3, PERCEIVER.latents + 1, 2 * ENCODER.embed)


def test_a_soft_prompt_is_a_prefix_of_words_that_the_decoder_does_not_have():
    model = random_model(make(SOFT))
    memory = jax.jit(lambda model, batch: model.fuse(model.memories(batch)))(model, BATCH)
    found, params = np.asarray(logits(model, BATCH)), nnx.to_pure_dict(nnx.state(model.decoder))
    size, count = DECODER.vocab_size, PERCEIVER.latents + 1
    wide = nnx.eval_shape(
        lambda: Decoder(DECODER.model_copy(update={"vocab_size": size + count}), rngs=nnx.Rngs(0))
    )
    run = jax.jit(lambda decoder, tokens: decoder(tokens))
    for user in range(3):  # the memory's vectors become the embeddings of new words
        table = jnp.concatenate([params["embed_tokens"], memory.tokens[user]])
        decoder = nnx.merge(nnx.graphdef(wide), params | {"embed_tokens": table})
        words = np.concatenate([size + np.arange(count), BATCH["tokens"][user]])[None]
        alone = run(decoder, words.astype(np.int32))[0, count:, :size]
        np.testing.assert_allclose(found[user], alone, rtol=1e-5, atol=1e-5)


def test_attention_is_shared_among_the_events_there_are(crossed):
    attention = jax.jit(lambda model, batch: model.attention(batch))
    plain = random_model(make(changed(CROSSED, perceiver=changed(PERCEIVER, latents=0))))
    for model in (crossed, plain):
        shares = np.asarray(attention(model, BATCH))
        assert shares.shape == (DECODER.num_hidden_layers // CROSS.every, 3, 5, 6)
        assert (shares >= 0).all()
        np.testing.assert_allclose(shares[:, :2].sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(np.where(BATCH["segments"][:, None] > 0, 0, shares), 0)
        np.testing.assert_array_equal(shares[:, 2], 0)  # nobody to look at


@pytest.mark.parametrize("fusion", ["cross_attention", "soft_prompt"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_mix_of_activation_types_runs(fusion, dtype):
    decoder = DECODER.model_copy(update={"dtype": "bfloat16", "param_dtype": dtype})
    encoder = ENCODER.model_copy(update={"dtype": dtype})

    def run(batch):
        system = changed(CROSSED, fusion=fusion)
        return UserLLM(system, decoder, encoder, FEATURES, rngs=nnx.Rngs(0))(batch)

    assert jax.eval_shape(run, BATCH).dtype == jnp.bfloat16


def personal(fusion="soft_prompt", **update):
    """A system that reads timelines and past texts, and a batch with both."""
    reader = TextEncoderConfig(
        vocab_size=20,
        hidden_size=6,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        max_tokens=8,
    )
    streams = ("timeline", "persona")
    system = changed(CROSSED, streams=streams, fusion=fusion, strategy="encoder", **update)
    rng = np.random.default_rng(3)
    there = (BATCH["segments"] > 0)[..., None]
    vectors = np.concatenate([rng.normal(size=(3, 6, 6)), there], axis=2, dtype=np.float32)
    present = {
        "tokens": rng.integers(1, 20, (3, 5)).astype(np.int32),
        "mask": np.arange(5) < np.array([[5], [2], [3]]),
    }
    batch = BATCH | {"events": BATCH["events"] | {TEXT_VECTOR: vectors}, "present": present}
    return partial(UserLLM, system, DECODER, ENCODER, FEATURES, None, reader), system, batch


@pytest.mark.parametrize("fusion", ["cross_attention", "soft_prompt"])
def test_a_persona_joins_a_timeline_in_the_decoders_width(fusion):
    make, _, batch = personal(fusion)
    model = random_model(make)
    memories = jax.jit(lambda model, batch: model.memories(batch))(model, batch)
    memory = jax.jit(lambda model, batch: model.fuse(model.memories(batch)))(model, batch)
    persona = memory.tokens[:, -2:] - model.kinds[...][1]
    np.testing.assert_allclose(persona, memories["persona"].tokens, atol=1e-6)
    assert memory.tokens.shape == (3, PERCEIVER.latents + 3, DECODER.hidden_size)
    if fusion == "soft_prompt":
        assert model.prefix == memory.tokens.shape[1]
    table = np.asarray(model.decoder.embed_tokens[...])
    length = np.linalg.norm(table, axis=1).mean() * np.abs(model.streams["persona"].gain[...])
    np.testing.assert_allclose(np.linalg.norm(persona, axis=2), length, rtol=1e-4)
    before = np.asarray(logits(model, batch))
    other = batch["present"] | {"tokens": batch["present"]["tokens"][::-1]}
    after = np.asarray(logits(model, batch | {"present": other}))
    assert (before[0] != after[0]).any()  # what is asked tells which past texts matter
    np.testing.assert_array_equal(before[2], after[2])  # there are none


@pytest.mark.parametrize("frozen", [False, True])
def test_a_persona_is_trained_beside_a_frozen_decoder(frozen, mesh):
    make, system, batch = personal(encoder_frozen=frozen)
    tx, grid = make_optimizer(OptimConfig(learning_rate=1e-2), 2), mesh()
    graphdef, abstract, init = setup(make, tx, trained(system), grid)
    state = init(jax.random.key(0))
    step = make_train_step(graphdef, losses.answer, tx, abstract)
    before = jax.tree.map(np.array, flatten_dict(state.params))
    with jax.set_mesh(grid):
        state, _ = step(state, batch, jax.random.key(0))
    for path, value in flatten_dict(state.params).items():
        encoder = "encoder" in path or "text_encoder" in path
        still = path[0] == "decoder" or (encoder and frozen) or "heads" in path
        unused = "types" in path  # whose second row no text has; the first may move
        assert unused or np.array_equal(before[path], value) == still, path


@pytest.mark.parametrize("vectors", ["encoder", "text"])
def test_differences_join_a_timeline_and_ask_for_themselves(vectors):
    """Marked by their stream, and with their autoencoder's loss where they have one."""
    make, system, batch = personal()
    latent = DifferenceConfig(events=4, perceiver=PERCEIVER)
    own = latent if vectors == "encoder" else DifferenceConfig.dep(events=2, code=5)
    changes = {"streams": ("timeline", "difference"), "difference": own}
    make = partial(make.func, system.model_copy(update=changes), *make.args[1:])
    width = 2 * ENCODER.embed if vectors == "encoder" else 6
    apart = np.random.default_rng(4).normal(size=(3, 6, width + 1)).astype(np.float32)
    batch = batch | {"events": batch["events"] | {DIFFERENCE: apart}}
    model = random_model(make)
    memory = jax.jit(lambda model, batch: model.fuse(model.memories(batch)))(model, batch)
    assert memory.tokens.shape[1] == model.prefix == PERCEIVER.latents + 1 + own.width
    assert memory.mask.all()  # of who has few events, too, as in training
    bare = random_model(make)
    bare.kinds[...] = jnp.zeros_like(model.kinds[...])
    unmarked = jax.jit(lambda model, batch: model.fuse(model.memories(batch)))(bare, batch)
    marks = np.asarray(memory.tokens - unmarked.tokens)
    for part, kind in ((marks[:, : -own.width], 0), (marks[:, -own.width :], 1)):
        np.testing.assert_allclose(
            part, np.broadcast_to(model.kinds[...][kind], part.shape), atol=1e-5
        )
    batch |= {"tokens": batch["tokens"], "weights": np.ones(batch["tokens"].shape, np.float32)}
    (whole, _), (tokens, _) = jax.jit(
        lambda model, batch: (
            losses.answer(model, batch, jax.random.key(0)),
            losses.answer_tokens(model, batch),
        )
    )(model, batch)
    assert (whole > tokens) == (vectors == "text")


def test_each_stream_may_have_a_cross_attention_of_its_own():
    """Which reads that stream alone, in training as in generation."""
    make, system, batch = personal("cross_attention")
    own = DifferenceConfig(events=4, perceiver=PERCEIVER)
    changes = {"streams": ("timeline", "difference"), "difference": own}
    changes["cross_attention"] = CROSS.model_copy(update={"apart": True})
    make = partial(make.func, system.model_copy(update=changes), *make.args[1:])
    apart = np.random.default_rng(4).normal(size=(2, 3, 6, 2 * ENCODER.embed + 1))
    batches = [
        batch | {"events": batch["events"] | {DIFFERENCE: column}}
        for column in apart.astype(np.float32)
    ]
    model = random_model(make)
    assert len(model.decoder.cross.lanes) == 2
    one, other = (np.asarray(logits(model, b)) for b in batches)
    assert (one[0] != other[0]).any()
    gates = [lane.gate for lane in model.decoder.cross.lanes]
    memory = jax.jit(lambda model, batch: model.fuse(model.memories(batch)))(model, batches[0])
    lengths = jnp.full(3, batch["tokens"].shape[1], jnp.int32)
    written, _ = Generator(model.decoder).prefill(jnp.asarray(batch["tokens"]), lengths, memory)
    np.testing.assert_allclose(written, one[:, -1], rtol=1e-4, atol=1e-4)
    gates[1][...] = jnp.zeros_like(gates[1][...])
    np.testing.assert_array_equal(*(logits(model, b) for b in batches))
    gates[0][...] = jnp.zeros_like(gates[0][...])
    plain = random_model(partial(UserLLM, PLAIN, DECODER, ENCODER, FEATURES))
    plain = np.asarray(logits(with_decoder_of(plain, model), batch))
    np.testing.assert_allclose(logits(model, batches[0]), plain, rtol=1e-5, atol=1e-5)


def test_tokens_of_events_may_stand_in_the_prompt():
    """Where it places them by negative tokens, in training as in generation."""
    make, system, batch = personal()
    own = DifferenceConfig.dep(events=2, code=5)
    changes = {"streams": ("difference",), "difference": own, "fusion": "interleaved"}
    make = partial(
        make.func, system.model_copy(update=changes | {"text_history": 2}), *make.args[1:]
    )
    apart = np.random.default_rng(4).normal(size=(3, 6, 7)).astype(np.float32)
    tokens = np.array([[5, -1, -2, 9, -3, -4, 7]] * 3, np.int32)
    batch = batch | {"events": batch["events"] | {DIFFERENCE: apart}, "tokens": tokens}
    model = random_model(make)
    assert model.prefix == 0
    memory = jax.jit(lambda model, batch: model.fuse(model.memories(batch)))(model, batch)
    found = np.asarray(logits(model, batch))
    table = np.asarray(model.decoder.embed_tokens[...])
    for user in range(3):
        told = np.asarray(memory.tokens[user])
        x = np.stack([table[t] if t >= 0 else told[-1 - t] for t in tokens[user]])
        hidden = jax.jit(lambda decoder, x: decoder.hidden(x))(model.decoder, x[None])
        wanted = hidden[0] @ table.T
        np.testing.assert_allclose(found[user], wanted, rtol=1e-4, atol=1e-4)
    answers, _ = Generator(model.decoder).start(tokens.tolist(), prefix=memory)
    np.testing.assert_allclose(answers, found[:, -1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"prompt 0 has tokens \[-5\] outside"):
        Generator(model.decoder).start([[5, -5]] * 3, prefix=memory)


def test_a_persona_needs_a_text_encoder():
    with pytest.raises(ValueError, match="give it their encoder's config"):
        nnx.eval_shape(lambda: make(changed(CROSSED, streams=("persona",)))(rngs=nnx.Rngs(0)))


def test_contradictory_settings_are_refused():
    with pytest.raises(ValueError, match="strategy='lora' with lora.rank=0"):
        check(changed(CROSSED, strategy="lora"))
    for strategy in ("full", "encoder", "projection"):
        with pytest.raises(ValueError, match=f"strategy='{strategy}' with lora.rank=2"):
            check(changed(CROSSED, strategy=strategy, lora=LORA))
    bare = PERCEIVER.model_copy(update={"latents": 0})
    with pytest.raises(ValueError, match="needs perceiver.latents > 0"):
        nnx.eval_shape(lambda: make(changed(SOFT, perceiver=bare))(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"item_tokens .* streams=\(\) has none"):
        check(changed(NAMED, streams=()))
    with pytest.raises(ValueError, match=r"fusion='none' leaves the streams unread"):
        check(changed(CROSSED, fusion="none"))
    interleaved = changed(CROSSED, fusion="interleaved", streams=("difference",), text_history=4)
    with pytest.raises(ValueError, match="places the tokens of each event behind its words"):
        check(interleaved)  # a Perceiver's tokens are of no event
    placed = changed(interleaved, difference=DifferenceConfig.dep())
    check(placed)
    with pytest.raises(ValueError, match="no text_summary"):
        check(changed(placed, text_summary=True))
    for fine in (changed(CROSSED, perceiver=bare), changed(SOFT, streams=(), perceiver=bare)):
        check(fine)


def moving(path, strategy, encoder_frozen):
    """Whether the strategy's paragraph in the paper's section 3.3 names that parameter."""
    name = ".".join(map(str, path))
    encoder = name.startswith("streams.timeline.encoder.")
    between = name.startswith(
        ("streams.timeline.age", "streams.timeline.perceiver.", "projectors.", "item_tokens.")
    )
    between |= name.startswith("decoder.cross.")
    adapter = name.endswith((".lora_a", ".lora_b"))
    decoder = name.startswith("decoder.") and not between and not adapter
    assert encoder + between + adapter + decoder == 1, name
    if encoder and encoder_frozen:
        return False
    return {
        "full": True,
        "encoder": encoder or between,
        "lora": encoder or between or adapter,
        "projection": between,
    }[strategy]


@pytest.mark.parametrize(
    ("strategy", "frozen"),
    [("full", 0), ("full", 1), ("encoder", 0), ("lora", 0), ("lora", 1), ("projection", 0)],
)
def test_a_step_moves_what_its_strategy_names_and_leaves_the_rest_bit_for_bit(
    strategy, frozen, mesh
):
    lora = LORA if strategy == "lora" else LoRAConfig()
    system = changed(NAMED, strategy=strategy, encoder_frozen=bool(frozen), lora=lora)
    tx, grid = make_optimizer(OptimConfig(learning_rate=1e-2), 2), mesh()
    graphdef, abstract, init = setup(make(system), tx, trained(system), grid)
    state = init(jax.random.key(0))
    step = make_train_step(graphdef, losses.answer, tx, abstract)
    before = jax.tree.map(np.array, flatten_dict(state.params))
    with jax.set_mesh(grid):
        for _ in range(2):  # at the first, lora_b is zero and lora_a has no gradient
            state, _ = step(state, BATCH, jax.random.key(0))
    after = flatten_dict(state.params)
    assert before.keys() == after.keys()
    for path, value in before.items():
        same = np.array_equal(value, after[path])
        heard = "heads" not in path  # the encoder's heads have no say in an answer
        assert same != (heard and moving(path, strategy, frozen)), path
    assert (strategy == "lora") == any("lora_a" in path for path in before)
