"""Every system of the zoo, tiny: what is built, what it minimises, what moves, and a batch.

Sizes are such as eight divides, so that whatever may be split is split. Each family of decoders
and each strategy has its system.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from models_made import CROSS, DECODER, ENCODER, FEATURES, random_batch

from user_llm.config import (
    DIFFERENCE,
    TEXT_VECTOR,
    DifferenceConfig,
    LoRAConfig,
    ObjectiveConfig,
    PerceiverConfig,
    PersonaConfig,
    SystemConfig,
    TextEncoderConfig,
)
from user_llm.models.encoders import ENCODERS
from user_llm.models.layers import Linear, Memory
from user_llm.models.user_llm import UserLLM, trained
from user_llm.training import losses

WIDE = ENCODER.model_copy(update={"embed": 16, "mlp": 32, "heads": 4, "feature_embed": 8})
ITEMS = tuple(
    f if f.kind == "vector" else f.model_copy(update={"size": 16 * -(-f.size // 16)})
    for f in FEATURES
)
TALL = (ITEMS[0].model_copy(update={"size": 512}), *ITEMS[1:])  # more items than are looked up
READER = TextEncoderConfig(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=8,
    max_tokens=8,
)
TOKENS, EVENTS = 8, 6
PERCEIVER = PerceiverConfig(latents=3, layers=1, heads=2)
SLIDING: dict[str, Any] = {
    "sliding_window": 3,
    "layer_types": ("sliding_attention", "full_attention"),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 3},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": False},
    "gemma2": SLIDING | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": SLIDING | {"rope_local_base_freq": 100.0, "query_pre_attn_scalar": 4},
}


class Case(NamedTuple):
    """What a stage trains, and a batch of it."""

    make_model: Any
    loss: Any
    moved: Any
    batch: dict
    norms: float = 1.0  # what weights of the decoder's norms are about at first


def encoder(kind, objective, features=ITEMS, items=None, next_k=1, objectives=None, **options):
    config = WIDE.model_copy(update={"kind": kind} | options)
    chosen = ObjectiveConfig(kind=objective, negatives=8, next_k=next_k, **(objectives or {}))
    loss = partial(losses.encoder_loss, objective=chosen)
    return Case(partial(ENCODERS[kind], config, features, items), loss, nnx.Param, batch(features))


def known_items(features):
    """What is known of items beforehand: all but the last third were seen, each has its genres."""
    rng, (item, _, genres, _) = np.random.default_rng(5), features
    values = rng.integers(0, genres.size, (item.size, 3)).astype(np.int32)
    return {genres.name: values, "trained": np.arange(item.size) < 2 * item.size // 3}


def system(family, features=ITEMS[:1], encoder="autoregressive", **parts):
    parts = {"cross_attention": CROSS, "perceiver": PERCEIVER, "strategy": "encoder"} | parts
    config = SystemConfig(**parts)
    decoder = DECODER.model_copy(update={"model_type": family} | FAMILIES[family])
    user = WIDE.model_copy(update={"kind": encoder})
    make = partial(UserLLM, config, decoder, user, features, None, READER)
    norms = 0.0 if family.startswith("gemma") else 1.0  # Gemma's add one
    return Case(make, losses.answer, trained(config), batch(features, config), norms)


def batch(features, system=None):
    """Eight users, one of them without events, with all the columns that streams read."""
    lengths = (6, 2, 0, 6, 5, 1, 3, 6)
    made = random_batch(0, lengths, EVENTS, TOKENS)
    rng = np.random.default_rng(1)
    item = rng.integers(0, features[0].size, made["events"]["item"].shape)
    made["events"]["item"] = item.astype(np.int32)
    if system is None:
        return {name: made[name] for name in ("events", "segments")}
    widths = {"encoder": 2 * WIDE.embed, "text": READER.hidden_size}
    columns = {TEXT_VECTOR: widths["text"], DIFFERENCE: widths[system.difference.vectors]}
    for name, width in columns.items():
        there = rng.random((len(lengths), EVENTS, 1)) < 0.8
        values = [rng.normal(0, 0.3, (len(lengths), EVENTS, width)), there]
        made["events"][name] = np.concatenate(values, axis=2, dtype=np.float32)
    made["present"] = {
        "tokens": rng.integers(1, READER.vocab_size, (len(lengths), 5)).astype(np.int32),
        "mask": np.arange(5) < rng.integers(1, 6, (len(lengths), 1)),
    }
    if system.interleaved:
        made["tokens"][:, 1:5] = -1 - np.arange(4)
    if system.item_tokens:
        made["tokens"][:, -1] = DECODER.vocab_size + item[:, 0]
    return made


class Rated(nnx.Module):
    """A stream of one's own: how often a user gave each rating."""

    count = 1

    def __init__(self, given, *, rngs):
        self.ratings = next(f.size for f in given.features if f.name == "rating")
        self.width = given.encoder.embed
        self.proj = Linear(self.ratings, self.width, (None, "embed"), rngs=rngs)

    def __call__(self, batch):
        given = jax.nn.one_hot(batch["events"]["rating"], self.ratings)
        counts = jnp.where(batch["segments"][..., None] > 0, given, 0).sum(1)
        return Memory(self.proj(counts)[:, None], jnp.ones((len(counts), 1), bool))


LATENT = DifferenceConfig(events=4, perceiver=PERCEIVER)
DEP = DifferenceConfig.dep(events=2, code=16)
APART = CROSS.model_copy(update={"apart": True, "kv_heads": 1})
WHOLE = PERCEIVER.model_copy(update={"latents": 0})  # events are attended to as they are
CASES = {
    "autoregressive": encoder("autoregressive", "softmax", next_k=2, gated=True),
    "autoregressive_content": encoder(
        "autoregressive",
        "sampled_softmax",
        items=known_items(ITEMS),
        content=("genres",),
        id_dropout=0.3,
        objectives={"proposal": "mixed"},
    ),
    "hstu": encoder("hstu", "sampled_softmax", query_time=True, objectives={"shared": False}),
    "hstu_tall": encoder("hstu", "in_batch", TALL, similarity="dot", temperature=1.0),
    "bert4rec": encoder("bert4rec", "softmax"),
    "bert4rec_tall": encoder("bert4rec", "gbce", TALL),
    "dual": encoder("dual", "in_batch"),
    "dual_tall": encoder("dual", "sampled_softmax", TALL, objectives={"proposal": "popularity"}),
    "full": system("gemma3_text", ITEMS, strategy="full", item_tokens=True),
    "encoder": system("llama", encoder="hstu", perceiver=WHOLE),
    "lora": system("qwen3", strategy="lora", lora=LoRAConfig(rank=2, targets=("*",))),
    "projection": system("qwen2", strategy="projection", encoder="bert4rec"),
    "soft_prompt": system("gemma2", fusion="soft_prompt", encoder="dual"),
    "lanes": system(
        "mistral",
        streams=("timeline", "difference"),
        difference=LATENT,
        cross_attention=APART,
        perceiver=WHOLE,
    ),
    "streams": system(
        "qwen2",
        streams=("timeline", "persona", "difference"),
        persona=PersonaConfig(weights="mean", tokens=2),
        difference=LATENT,
    ),
    "persona": system(
        "llama", streams=("persona",), fusion="soft_prompt", persona=PersonaConfig(labels=True)
    ),
    "own": system(
        "llama", ITEMS, streams=("systems_made:Rated", "timeline"), cross_attention=APART
    ),
    "dep": system(
        "qwen3", streams=("difference",), difference=DEP, fusion="interleaved", text_history=2
    ),
}
