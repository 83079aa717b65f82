"""Kernels against plain attention: a CPU's blocks, TPU's interpreted, cuDNN's only lowered."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_decoders import PECULIAR, random_decoder

from user_llm.config import DecoderConfig
from user_llm.inference.generate import Generator
from user_llm.models import attention, decoder, flash
from user_llm.models.attention import attend, attend_causally
from user_llm.sharding import batch_sharding

LENGTH = 150  # which no block divides


def draw(*shape, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, size, dtype) for key, size in zip(keys, shape, strict=True))
    return q, k, v


def plain(q, k, v, window, softcap=None):
    at = jnp.arange(q.shape[2])
    mask = (at <= at[:, None]) & (at > at[:, None] - window)
    y = attend(q.swapaxes(1, 2), k, v, mask[None], softcap)
    return y.reshape(*y.shape[:2], q.shape[1], -1).swapaxes(1, 2)


@pytest.mark.parametrize(
    ("kv_heads", "window", "softcap"), [(4, LENGTH, None), (2, LENGTH, None), (1, 20, 5.0)]
)
@pytest.mark.parametrize(
    "kernel",
    [
        flash.by_blocks,
        pytest.param(partial(flash.splash, interpret=True), marks=pytest.mark.slow, id="splash"),
    ],
)
def test_kernels_are_plain_attention_there_and_back(monkeypatch, kernel, kv_heads, window, softcap):
    monkeypatch.setattr(flash, "BLOCK", 64)
    q, k, v = draw((2, 4, LENGTH, 64), (2, kv_heads, LENGTH, 64), (2, kv_heads, LENGTH, 64))

    def found(attend):
        def total(q, k, v):
            y = attend(q, k, v, window=window, softcap=softcap)
            return jnp.sin(y).sum(), y

        gradients, y = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return y, *gradients

    with jax.numpy_dtype_promotion("standard"):
        ours = found(kernel)
    for mine, theirs in zip(ours, found(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "call"), [("tpu", "tpu_custom_call"), ("gpu", "__cudnn$fmhaSoftmax")]
)
@pytest.mark.parametrize("shape", [None, (2, 2, 2)], ids=str)
def test_kernels_are_lowered_for_their_platforms(monkeypatch, mesh, shape, platform, call):
    monkeypatch.setattr(flash, "platform", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_200
    )
    q, k, v = draw((4, 256, 4, 64), (4, 2, 256, 64), (4, 2, 256, 64), dtype=jnp.bfloat16)

    def loss(q, k, v):
        y = attend_causally(q, k, v, jnp.ones((1, 256, 256), bool), window=100)
        return y.astype(jnp.float32).sum()

    on = mesh(*shape) if shape else None
    q, k, v = jax.device_put((q, k, v), on and batch_sharding(on))
    with jax.set_mesh(on) if on else nullcontext():
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v)
        text = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else "tpu",)).as_text()
    assert call in text
    assert "stablehlo.exponential" not in text


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 8)], ids=str)
def test_blocks_are_plain_attention_on_every_mesh(mesh, shape, monkeypatch):
    monkeypatch.setattr(flash, "SHORTEST_ON_CPU", LENGTH)
    q, k, v = draw((4, LENGTH, 4, 8), (4, 2, LENGTH, 8), (4, 2, LENGTH, 8))
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    with jax.set_mesh(mesh(*shape)):
        ours = jax.jit(partial(attend_causally, window=LENGTH))(q, k, v, mask)
        assert flash.flash(q.swapaxes(1, 2), k, v, LENGTH) is not None
    np.testing.assert_allclose(ours, attend(q, k, v, mask), atol=1e-5)


def test_no_kernel_takes_what_it_cannot(monkeypatch):
    monkeypatch.setattr(flash, "cudnn", lambda q, k, v, window: q)
    q, k, v = draw((1, 2, 128, 256), (1, 2, 128, 256), (1, 2, 128, 256), dtype=jnp.bfloat16)
    assert flash.flash(q, k, v, 128) is None  # in bfloat16 on a CPU
    monkeypatch.setattr(flash, "platform", lambda: "gpu")
    q, k, v, wide = *(x[..., :64] for x in (q, k, v)), (q, k, v)
    assert flash.flash(q, k, v, 128) is None  # eight devices, and no mesh
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert flash.flash(q, k, v, 128) is q
    assert flash.flash(*wide, 128) is None
    assert flash.flash(q, k, v, 128, softcap=5.0) is None
    assert flash.flash(*(x[:, :, :99] for x in (q, k, v)), 99) is None
    assert flash.flash(*(x.astype(jnp.float32) for x in (q, k, v)), 128) is None


@pytest.mark.parametrize("family", [{"sliding_window": 5}, PECULIAR], ids=["all slide", "some"])
def test_a_decoder_tells_kernels_which_keys_are_seen(monkeypatch, family):
    config = DecoderConfig(num_hidden_layers=2, hidden_size=32, head_dim=8)
    made = random_decoder(config.model_copy(update=family))
    tokens = jnp.arange(24).reshape(2, 12)
    wanted = jax.jit(lambda d, t: d(t))(made, tokens)
    windows = set()

    def kernel(q, k, v, window, softcap):
        windows.add(window)
        return plain(q, k, v, window, softcap)

    monkeypatch.setattr(attention, "flash", kernel)
    monkeypatch.setattr(decoder, "platform", lambda: "tpu")
    ours = jax.jit(lambda d, t: d(t))(made, tokens)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert windows == ({5, 12} if family is PECULIAR else {5})
    windows.clear()
    last, _ = Generator(made).start(tokens.tolist())
    np.testing.assert_allclose(last, wanted[:, -1], atol=1e-5)
    assert windows == ({5, 16} if family is PECULIAR else {5})  # a prompt of 12 is padded
