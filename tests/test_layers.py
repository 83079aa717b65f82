"""The parts of the models against torch's and transformers' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from user_llm.config import LoRAConfig
from user_llm.models.attention import (
    Attention,
    KVCache,
    Positions,
    attend,
    attention_weights,
    frequencies,
    rotary,
)
from user_llm.models.blocks import Block
from user_llm.models.layers import (
    FEW_ROWS,
    MLP,
    Linear,
    RMSNorm,
    ServedLinear,
    dropout,
    quantized,
    rematerialized,
)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def positions(length, head_dim):
    return Positions.of(jnp.arange(length)[None], frequencies(head_dim))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_is_that_of_torch_in_float32(dtype):
    norm, x, weight = RMSNorm(8, eps=1e-3), jnp.asarray(normal(0, 3, 8), dtype), normal(1, 8)
    norm.weight[...] = jnp.asarray(weight)
    exact = torch.tensor(np.asarray(x, np.float32))
    theirs = torch.nn.functional.rms_norm(exact, (8,), torch.tensor(weight), eps=1e-3)
    assert norm(x).dtype == jnp.dtype(dtype)
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(norm(x).astype(jnp.float32), theirs, rtol=tolerance, atol=tolerance)


def test_rotary_is_that_of_transformers():
    q, k, at = (
        normal(0, 2, 5, 4, 8),
        normal(1, 2, 5, 4, 8),
        np.array([[0, 1, 2, 3, 4], [7, 9, 3, 0, 500]]),
    )
    angle = at[..., None] * 1000.0 ** -(np.arange(0, 8, 2) / 8)
    angle = torch.tensor(np.concatenate([angle, angle], -1), dtype=torch.float32)
    theirs = apply_rotary_pos_emb(
        torch.tensor(q), torch.tensor(k), angle.cos(), angle.sin(), unsqueeze_dim=2
    )
    for x, y in zip((q, k), theirs, strict=True):
        ours = rotary(jnp.asarray(x), Positions.of(jnp.asarray(at), frequencies(8, 1000.0)))
        np.testing.assert_allclose(ours, y, atol=2e-5)


@pytest.mark.parametrize(("lib", "sines"), [(np, 0), (jnp, 1)])
def test_angles_of_known_positions_are_constants(lib, sines):
    program = jax.jit(lambda x: rotary(x, Positions.of(lib.arange(5)[None], frequencies(8)))).lower(
        jnp.ones((2, 5, 4, 8))
    )
    assert program.as_text().count("stablehlo.sine") == sines


def test_grouped_attention_is_that_of_torch():
    q, k, v = normal(0, 2, 5, 6, 8), normal(1, 2, 2, 7, 8), normal(2, 2, 2, 7, 8)
    mask = np.random.default_rng(3).random((2, 5, 7)) < 0.5
    mask[..., 0] = True
    theirs = torch.nn.functional.scaled_dot_product_attention(
        torch.tensor(q).swapaxes(1, 2),
        torch.tensor(k),
        torch.tensor(v),
        attn_mask=torch.tensor(mask)[:, None],
        enable_gqa=True,
    )
    ours = attend(*map(jnp.asarray, (q, k, v, mask)))
    np.testing.assert_allclose(ours, theirs.swapaxes(1, 2).reshape(2, 5, 48), atol=1e-6)


def test_query_that_sees_nothing_gets_nothing():
    q, k = jnp.asarray(normal(0, 1, 2, 2, 4)), jnp.asarray(normal(1, 1, 2, 3, 4))
    mask = jnp.array([[[True, True, False], [False, False, False]]])
    weights = attention_weights(q, k, mask)
    np.testing.assert_allclose(weights[..., 0, :].sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights[..., 1, :], 0)
    np.testing.assert_array_equal(attend(q, k, k, mask)[:, 1], 0)


def test_attention_by_cache_is_attention_at_once():
    length, heads = 6, 2
    attention = Attention(8, 4, kv_heads=heads, rngs=nnx.Rngs(0))
    x, causal = jnp.asarray(normal(0, 2, length, 8)), jnp.tril(jnp.ones((1, length, length), bool))
    whole, _ = attention(x, causal, positions=positions(length, 2))
    cache = KVCache.empty(2, heads, slots=length + 2, head_dim=2)
    offsets = jnp.array([[0], [0]])
    for t in range(length):
        at = offsets + t
        mask = jnp.arange(length + 2) <= at[..., None]
        y, cache = attention(
            x[:, t : t + 1], mask, positions=Positions.of(at, frequencies(2)), cache=cache
        )
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-6)


def test_cache_writes_every_row_at_its_own_position():
    cache = KVCache.empty(2, 1, slots=4, head_dim=1)
    new = jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1)
    written = cache.write(new, -new, jnp.array([[3], [1]]))
    np.testing.assert_array_equal(written.keys[:, 0, :, 0], [[0, 0, 0, 1], [0, 2, 0, 0]])
    np.testing.assert_array_equal(written.values, -written.keys)


def test_attention_to_a_context_of_another_width():
    attention = Attention(8, 2, context=5, rngs=nnx.Rngs(0))
    x, context = jnp.asarray(normal(0, 2, 3, 8)), jnp.asarray(normal(1, 2, 4, 5))
    mask = jnp.array([[True, True, False, False]] * 2)[:, None]
    y, cache = attention(x, mask, context=context)
    changed, _ = attention(x, mask, context=context.at[:, 2:].set(9.0))
    assert cache.keys.shape == (2, 2, 4, 4)
    np.testing.assert_array_equal(y, changed)


def test_lora_adds_its_scaled_product_to_the_kernel():
    lora = LoRAConfig(rank=2, alpha=6.0)
    linear = Linear(5, 3, ("embed", "mlp"), rngs=nnx.Rngs(0), lora=lora, bias=True)
    x = jnp.asarray(normal(0, 4, 5))
    before = x @ linear.kernel[...]
    np.testing.assert_array_equal(linear(x), before)  # lora_b starts at zero
    linear.lora_b[...], linear.bias[...] = jnp.asarray(normal(1, 2, 3)), jnp.asarray(normal(2, 3))
    merged = linear.kernel[...] + 3.0 * linear.lora_a[...] @ linear.lora_b[...]
    np.testing.assert_allclose(linear(x), x @ merged + linear.bias[...], atol=1e-5)


def test_lora_is_put_on_its_targets_alone():
    lora = LoRAConfig(rank=2, targets=("q_proj", "down_proj"))
    block = Block(8, 2, 16, rngs=nnx.Rngs(0), lora=lora)
    paths = {path for path, _ in nnx.to_flat_state(nnx.state(block, nnx.LoRAParam))}
    assert {path[:2] for path in paths} == {("self_attn", "q_proj"), ("mlp", "down_proj")}


@pytest.mark.parametrize(
    ("rows", "outputs"), [(1, 24), (1, 23), (FEW_ROWS, 24), (FEW_ROWS + 1, 24)]
)
def test_served_linear_is_the_trained_one(rows, outputs):
    rank = LoRAConfig(rank=2)
    linear = Linear(16, outputs, (None, None), rngs=nnx.Rngs(0), bias=True, lora=rank)
    linear.bias[...], linear.lora_b[...] = normal(1, outputs), normal(2, 2, outputs)
    x = jnp.asarray(normal(3, rows, 16))
    np.testing.assert_allclose(ServedLinear(linear)(x), linear(x), atol=1e-5)
    rounded = ServedLinear(linear, int8=True)
    kernel = rounded.kernel[...].T.astype(jnp.float32) * rounded.scale[...]
    wanted = linear(x) + x @ (kernel - linear.kernel[...])
    np.testing.assert_allclose(rounded(x), wanted, atol=1e-5)


def test_quantized_kernel_is_off_by_half_a_step_of_its_output_at_most():
    kernel = np.array(normal(0, 8, 500)) * np.logspace(-6, 3, 8)[:, None].astype(np.float32)
    kernel[3] = 0
    rounded, scale = (np.asarray(x) for x in quantized(jnp.asarray(kernel)))
    assert (rounded.dtype, rounded.shape, scale.shape) == (np.int8, (8, 500), (8,))
    np.testing.assert_allclose(np.abs(rounded).max(1)[[0, 1, 2, 4, 5, 6, 7]], 127)
    off = np.abs(rounded * scale[:, None].astype(np.float64) - kernel)
    assert (off <= scale[:, None] * 0.5001).all()


def test_mlp_is_swiglu():
    mlp, x = MLP(4, 6, rngs=nnx.Rngs(0)), jnp.asarray(normal(0, 3, 4))
    gate, up, down = (
        torch.tensor(np.asarray(p.kernel[...])) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    )
    t = torch.tensor(np.asarray(x))
    theirs = (torch.nn.functional.silu(t @ gate) * (t @ up)) @ down
    np.testing.assert_allclose(mlp(x), theirs, atol=1e-6)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones(20_000)
    y = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.02
    assert dropout(x, 0.25, None) is x


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.999])
def test_dropout_drops_each_value_alike_by_the_nearest_share_of_256(rate):
    dropped = dropout(jnp.ones((4000, 7)), rate, jax.random.key(0)) == 0
    share = min(max(round(rate * 256), 1), 255) / 256
    spread = (share * (1 - share) / 4000) ** 0.5
    assert jnp.abs(dropped.mean(0) - share).max() < 4 * spread
    together = (dropped[:, 0] & dropped[:, 1]).mean()  # although they share a random word
    assert jnp.abs(together - share**2) < 4 * spread


@pytest.mark.parametrize(("wrap", "draws"), [(jax.checkpoint, 2), (rematerialized, 1)])
def test_rematerialisation_draws_no_dropout_again(wrap, draws):
    def loss(x, key):
        return wrap(lambda x: jnp.tanh(dropout(x, 0.5, key)))(x).sum()

    steps = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((3, 8)), jax.random.key(0)))
    assert steps.count("random_bits[") == draws


def test_block_drops_out_differently_for_each_key():
    block = Block(8, 2, 16, rngs=nnx.Rngs(0), dropout=0.5)
    x, mask = jnp.asarray(normal(0, 1, 3, 8)), jnp.ones((1, 3, 3), bool)

    def run(key):
        return block(x, mask, positions(3, 4), key=key)[0]

    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert not np.allclose(run(jax.random.key(1)), run(jax.random.key(2)))
    assert not np.allclose(run(jax.random.key(1)), run(None))


def test_block_keeps_the_type_of_the_activations():
    block = Block(8, 2, 16, rngs=nnx.Rngs(0), lora=LoRAConfig(rank=2))
    x = jnp.asarray(normal(0, 1, 3, 8), jnp.bfloat16)
    y, cache = block(x, jnp.ones((1, 3, 3), bool), positions(3, 4), key=jax.random.key(0))
    assert y.dtype == cache.keys.dtype == cache.values.dtype == jnp.bfloat16
