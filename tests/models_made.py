"""Tiny models with random parameters, random users, and the same models said in plain numpy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.config import (
    CrossAttentionConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    PerceiverConfig,
)

ENCODER = EncoderConfig(window=10, embed=8, feature_embed=4, layers=2, heads=2, mlp=12)
FEATURES = (
    FeatureConfig(name="item", kind="categorical", size=11, predicted=True),
    FeatureConfig(name="rating", kind="categorical", size=7, predicted=True),
    FeatureConfig(name="genres", kind="bag", size=6),
    FeatureConfig(name="price", kind="vector", size=2),
)
PERCEIVER = PerceiverConfig(latents=3, layers=2, heads=2)
CROSS = CrossAttentionConfig(every=1, heads=2)
DECODER = DecoderConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
)
UNTIED = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)


def random_model(make, seed=0):
    """The module that `make(rngs=...)` builds, with every parameter random."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        if x.dtype == bool:
            return jnp.asarray(rng.random(x.shape) < 0.7)
        around = 1.0 if path[-1].key == "weight" else 0.0
        return jnp.asarray(rng.normal(around, 0.3, x.shape), x.dtype)

    return nnx.merge(graphdef, jax.tree.map_with_path(draw, nnx.to_pure_dict(state)))


def idle(model, measure):
    """The names of the parameters that a model's measure does not depend on, by its gradient."""
    graphdef, state = nnx.split(model)
    slope = jax.jit(jax.grad(lambda state: measure(nnx.merge(graphdef, state))))
    return [
        jax.tree_util.keystr(path)
        for path, g in jax.tree.leaves_with_path(nnx.to_pure_dict(slope(state)))
        if not jnp.abs(g).max() > 0
    ]


def random_events(seed, *shape, features=FEATURES):
    """Encoded features of events, missing and unknown values among them."""
    rng = np.random.default_rng(seed)

    def values(feature):
        if feature.kind == "vector":
            return rng.normal(size=(*shape, feature.size)).astype(np.float32)
        slots = (3,) if feature.kind == "bag" else ()
        return rng.integers(0, feature.size, (*shape, *slots)).astype(np.int32)

    told = {feature.name: values(feature) for feature in features}
    # Some events in the same second, some years apart; what is asked for comes after each.
    gaps = np.exp(rng.uniform(-2, 18, shape)).astype(np.int32)
    times = np.cumsum(gaps, axis=-1, dtype=np.int32)
    asked = np.concatenate([times[..., 1:], times[..., -1:] + 5], axis=-1)
    return told | {"event_time": times, "query_time": asked}


def random_batch(seed, lengths, size=6, tokens=5):
    """Users with that many events each, and a text for each of them."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, DECODER.vocab_size, (len(lengths), tokens)).astype(np.int32)
    return {
        "events": random_events(seed, len(lengths), size),
        "segments": (np.arange(size) < np.array(lengths)[:, None]).astype(np.int32),
        "tokens": words,
        "weights": (np.arange(tokens) > 1).astype(np.float32) * np.ones_like(words, np.float32),
    }


def parameters(model):
    """A module's parameters as nested dicts of float64."""
    state = nnx.to_pure_dict(nnx.state(model))
    return jax.tree.map(partial(np.asarray, dtype=np.float64), state)


def layers(stack):
    """The layers of a stack, one by one."""
    count = len(jax.tree.leaves(stack)[0])
    return [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(count)]


def rms_norm(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["weight"]


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(p, x):
    return linear(p["down_proj"], silu(linear(p["gate_proj"], x)) * linear(p["up_proj"], x))


def rotate(x, theta=10_000.0):  # [T, H]: the vector at t by t
    pairs = x[:, : x.shape[1] // 2] + 1j * x[:, x.shape[1] // 2 :]
    angle = np.arange(len(x))[:, None] * theta ** (-2 * np.arange(pairs.shape[1]) / x.shape[1])
    turned = pairs * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=1)


def attention(p, x, context, heads, *, causal=False, positions=False):
    """Output [T, D] of x attending to the context, and each head's weights [N, T, S]."""
    q, k, v = (linear(p[f"{n}_proj"], y) for n, y in zip("qkv", (x, context, context), strict=True))
    outputs, weights = [], []
    for queries, keys, values in zip(*(np.split(y, heads, axis=1) for y in (q, k, v)), strict=True):
        if positions:
            queries, keys = rotate(queries), rotate(keys)
        scores = queries @ keys.T / np.sqrt(queries.shape[1])
        if causal:
            scores[np.triu_indices(len(x), 1)] = -np.inf
        shares = np.exp(scores - scores.max(1, keepdims=True))
        weights.append(shares / shares.sum(1, keepdims=True))
        outputs.append(weights[-1] @ values)
    return linear(p["o_proj"], np.concatenate(outputs, axis=1)), np.stack(weights)


def embed(p, events, features, config):
    """One vector per event [T, D]; the item is the first feature."""
    parts = []
    for feature in features:
        values = events[feature.name]
        if feature.kind == "vector":
            parts.append(linear(p["vectors"][feature.name], values.astype(np.float64)))
            continue
        table = p["tables"][feature.name] * np.sqrt(config.embed)
        if feature.kind == "categorical":
            parts.append(table[values])
            continue
        filled = [[table[i] for i in bag if i > 0] for bag in values]
        empty = np.zeros(table.shape[1])
        parts.append(np.stack([np.mean(bag, axis=0) if bag else empty for bag in filled]))
    item, *others = parts
    return item + linear(p["proj"], np.concatenate(others, axis=1)) if others else item


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def encode(p, events, features=FEATURES, config=ENCODER):
    """The states [T, D] of one whole timeline, its events [T, ...], by its kind of encoder."""
    x = embed(p["embedding"], events, features, config)
    return {"hstu": hstu, "bert4rec": bert4rec}.get(config.kind, transformer)(p, x, events, config)


def transformer(p, x, events, config):
    """Pre-norm; gated, each residual is weighed by the sigmoid of a projection of its input."""
    for layer in layers(p["layers"]):
        y = rms_norm(layer["input_layernorm"], x)
        y = attention(layer["self_attn"], y, y, config.heads, causal=True, positions=True)[0]
        x = x + (y * sigmoid(linear(layer["attn_gate"], x)) if config.gated else y)
        y = swiglu(layer["mlp"], rms_norm(layer["post_attention_layernorm"], x))
        x = x + (y * sigmoid(linear(layer["mlp_gate"], x)) if config.gated else y)
    return rms_norm(p["norm"], x)


def layer_norm(x, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def hstu(p, x, events, config):
    """Equations 2 to 4 of arXiv 2402.17152, one query and key at a time."""
    length, width = x.shape
    for layer in layers(p["layers"]):
        u, v, q, k = np.split(silu(linear(layer["uvqk_proj"], layer_norm(x, 1e-6))), 4, axis=1)
        y = np.zeros((length, width))
        for i in range(length):
            for j in range(i + 1):
                bias = layer["position_bias"][i - j]
                if config.time_bias:
                    now = events["query_time" if config.query_time else "event_time"][i]
                    ago = abs(int(now) - int(events["event_time"][j]))
                    bias = bias + layer["time_bias"][min(128, int(np.log(max(1, ago)) / 0.301))]
                for head in np.split(np.arange(width), config.heads):
                    y[i, head] += silu(q[i, head] @ k[j, head] + bias) / config.window * v[j, head]
        x = x + linear(layer["o_proj"], layer_norm(y, 1e-6) * u)
    return x


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def bert4rec(p, x, events, config):
    """Equations 2 to 6 of arXiv 1904.06690."""
    x = x + p["positions"][: len(x)]
    for layer in layers(p["layers"]):
        for norm, sublayer in (
            ("attn_norm", lambda x, p=layer: attention(p["self_attn"], x, x, config.heads)[0]),
            ("mlp_norm", lambda x, p=layer: linear(p["down_proj"], gelu(linear(p["up_proj"], x)))),
        ):
            x = layer_norm(x + sublayer(x), 1e-12) * layer[norm]["weight"] + layer[norm]["bias"]
    return x
