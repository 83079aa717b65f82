"""What the decoder may see, what its cross-attention adds, and that meshes change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_decoders import random_decoder

from user_llm.config import CrossAttentionConfig, DecoderConfig, LoRAConfig
from user_llm.models.decoder import Decoder
from user_llm.models.layers import Memory
from user_llm.sharding import batch_sharding, shardings

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 12)))


CROSS = CrossAttentionConfig(every=2, heads=2)


@jax.jit
def logits(decoder, tokens, memory=None):
    return decoder(tokens, memory)


@pytest.fixture(scope="module")
def crossed():
    return random_decoder(CONFIG, cross_attention=CROSS)


@pytest.fixture(scope="module")
def memory():
    keys = jax.random.split(jax.random.key(1), 2)
    mask = jax.random.bernoulli(keys[1], 0.6, (8, 5)).at[:, 0].set(True)
    return Memory(jax.random.normal(keys[0], (8, 5, 32)), mask)


@pytest.fixture(scope="module")
def closed(crossed):
    """The same with gates as `gate=0.0` starts them."""
    closed = nnx.clone(crossed)
    closed.cross.gate[...] = jnp.zeros(2)
    return closed


def test_gates_start_at_the_asked_value():
    for value in (0.0, 0.5):
        cross = CrossAttentionConfig(every=2, heads=2, gate=value)
        decoder = Decoder(CONFIG, rngs=nnx.Rngs(0), cross_attention=cross)
        np.testing.assert_allclose(jnp.tanh(decoder.cross.gate[...]), [value, value], rtol=1e-6)


def test_closed_gates_leave_the_plain_decoder_bit_for_bit(crossed, closed, memory):
    plain = random_decoder(CONFIG)
    for name in ("embed_tokens", "layers", "norm"):
        setattr(plain, name, getattr(closed, name))
    np.testing.assert_array_equal(logits(closed, TOKENS, memory), logits(plain, TOKENS))
    assert not np.allclose(logits(crossed, TOKENS, memory), logits(plain, TOKENS))


def test_closed_gates_still_learn(closed, memory):
    @jax.jit
    def gradient(decoder):
        return jax.grad(lambda decoder: jnp.square(decoder(TOKENS, memory)).sum())(decoder)

    assert (gradient(closed).cross.gate[...] != 0).all()


def test_memory_is_read_where_its_mask_allows(crossed, memory):
    seen = logits(crossed, TOKENS, memory)
    hidden = jnp.where(memory.mask[..., None], memory.tokens, 99.0)
    np.testing.assert_array_equal(logits(crossed, TOKENS, Memory(hidden, memory.mask)), seen)
    assert not np.allclose(logits(crossed, TOKENS, Memory(memory.tokens + 1, memory.mask)), seen)


def test_user_without_memory_gets_the_plain_decoder(crossed, memory):
    nothing = Memory(memory.tokens, jnp.zeros_like(memory.mask))
    np.testing.assert_array_equal(logits(crossed, TOKENS, nothing), logits(crossed, TOKENS))


def test_each_user_reads_his_own_memory(crossed, memory):
    other = Memory(memory.tokens.at[1:].add(1.0), memory.mask)
    one, two = logits(crossed, TOKENS, memory), logits(crossed, TOKENS, other)
    np.testing.assert_allclose(one[0], two[0], atol=1e-6)
    assert not np.allclose(one[1:], two[1:])


def test_later_tokens_change_nothing_before_them(crossed, memory):
    changed = TOKENS.at[:, 7:].set(1)
    one, two = logits(crossed, TOKENS, memory), logits(crossed, changed, memory)
    np.testing.assert_array_equal(one[:, :7], two[:, :7])
    assert not np.allclose(one[:, 7:], two[:, 7:])


def test_groups_must_divide_the_layers():
    with pytest.raises(ValueError, match="every=3 must divide the decoder's 4 layers"):
        Decoder(CONFIG, rngs=nnx.Rngs(0), cross_attention=CrossAttentionConfig(every=3))


def test_unstacked_layers_are_those_of_the_stack(crossed):
    single = crossed.unstacked()
    assert (len(single.layers), len(single.cross)) == (4, 2)
    for stack, singles in ((crossed.layers, single.layers), (crossed.cross, single.cross)):
        ours = [nnx.to_pure_dict(nnx.state(x)) for x in singles]
        again = jax.tree.map(lambda *x: jnp.stack(x), *ours)
        for path, x in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(stack))):
            turned = jax.tree_util.keystr(path).endswith("['kernel']")
            found = dict(jax.tree.leaves_with_path(again))[path]
            np.testing.assert_array_equal(found.swapaxes(1, 2) if turned else found, x)


def test_activations_in_bfloat16_over_weights_in_float32(memory):
    config = CONFIG.model_copy(update={"dtype": "bfloat16"})
    parts = {"cross_attention": CROSS, "lora": LoRAConfig(rank=2)}
    low = Memory(memory.tokens.astype(jnp.bfloat16), memory.mask)
    ours = logits(random_decoder(config, **parts), TOKENS, low)
    assert ours.dtype == jnp.bfloat16
    exact = logits(random_decoder(CONFIG, **parts), TOKENS, memory)
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=0.1 * jnp.abs(exact).max())


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_same_logits_on_any_mesh(crossed, memory, mesh, shape, capfd):
    on = mesh(*shape)
    graphdef, state = nnx.split(crossed)
    params = jax.device_put(nnx.to_pure_dict(state), nnx.to_pure_dict(shardings(state, on)))
    batch = jax.device_put((TOKENS, memory), batch_sharding(on))
    with jax.set_mesh(on):
        ours = jax.jit(lambda params, batch: nnx.merge(graphdef, params)(*batch))(params, batch)
    np.testing.assert_allclose(ours, logits(crossed, TOKENS, memory), atol=1e-5)
    assert "rematerialization" not in capfd.readouterr().err
