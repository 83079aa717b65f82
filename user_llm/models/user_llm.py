"""Streams x fusion x decoder, and what of them is trained."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from user_llm.config import (
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    SystemConfig,
    TextEncoderConfig,
)
from user_llm.models.decoder import Decoder, placed
from user_llm.models.layers import Linear, Memory, RMSNorm
from user_llm.models.streams import Given, Stream, make_stream
from user_llm.sharding import axes

SHOWN = ("events", "segments", "present", "hint")  # of a batch, to streams: no prompt, no answer


class Projector(nnx.Module):
    """From a stream's width to the decoder's."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(inputs)
        self.up_proj = Linear(inputs, outputs, ("embed", "mlp"), rngs=rngs)
        self.down_proj = Linear(outputs, outputs, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... W"]:
        return self.down_proj(jax.nn.gelu(self.up_proj(self.norm(x))))


class ItemTokens(nnx.Module):
    """Items as tokens of a decoder, made of what an encoder knows of them.

    A residual projector, which begins as a linear map: neither the decoder's words nor how it was
    taught them are touched. Source of the idea: SeqLLM, arXiv 2608.03063; gate and scale are ours.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(inputs)
        self.skip_proj = Linear(inputs, outputs, ("embed", "mlp"), rngs=rngs)
        self.projector = Projector(inputs, outputs, rngs=rngs)
        self.gate = nnx.Param(jnp.zeros(()))
        self.scale = nnx.Param(jnp.full((), 0.02))  # that of freshly initialised words

    def __call__(self, items: Float[Array, "I E"]) -> Float[Array, "I D"]:
        straight = self.skip_proj(self.norm(items))
        return self.scale[...] * (straight + self.gate[...] * self.projector(items))


class UserLLM(nnx.Module):
    """A decoder that reads what its streams know of a user (arXiv 2402.13598, section 3.2).

    Args:
      system: which streams, how they are read, what is trained.
      features: of an event, the item first.
      items: what an encoder is told of each item (see `EventEmbedding`).
      text_encoder: of the vectors of texts, for streams that read them.

    Raises:
      ValueError: the system's settings contradict each other, or a stream cannot be made.
    """

    def __init__(
        self,
        system: SystemConfig,
        decoder: DecoderConfig,
        encoder: EncoderConfig,
        features: tuple[FeatureConfig, ...],
        items: Mapping[str, Any] | None = None,
        text_encoder: TextEncoderConfig | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        check(system)
        self.system, width = system, decoder.hidden_size
        given = Given(system, decoder, encoder, features, items, text_encoder)
        streams, projectors = {}, {}
        for name, stream in system.by_name.items():
            streams[name] = one = make_stream(stream, given, rngs=rngs)
            if not getattr(one, "embedded", False):
                projectors[name] = Projector(one.width, width, rngs=rngs)
        self.streams, self.projectors = nnx.Dict(streams), nnx.Dict(projectors)
        counts = {name: getattr(one, "count", None) for name, one in streams.items()}
        check_counts(system, counts)
        self.counts = tuple(count or 0 for count in counts.values())  # 0: any number of tokens
        # Tells tokens of one stream from those of another where there are several.
        self.kinds = (
            nnx.Param(jnp.zeros((len(streams), width)), **axes(None, "embed"))
            if len(streams) > 1
            else None
        )
        self.decoder = Decoder(
            decoder,
            cross_attention=system.cross_attention if system.crossed else None,
            lanes=self.counts if system.apart else (),
            lora=system.lora,
            rngs=rngs,
        )
        self.item_tokens = (
            ItemTokens(encoder.embed, decoder.hidden_size, rngs=rngs)
            if system.item_tokens
            else None
        )

    @property
    def prefix(self) -> int:
        """The tokens of the memory where it stands before the prompt."""
        if not self.system.remembers or self.system.fusion != "soft_prompt":
            return 0
        return sum(self.counts)

    def speaker(self) -> Decoder:
        """The decoder with all that it can say: behind its words the items, where they are tokens.

        Item i of the data set is token `decoder.config.vocab_size` + i.
        """
        if self.item_tokens is None:
            return self.decoder
        items = self.streams["timeline"].encoder.embedding.items()
        return self.decoder.extended(self.item_tokens(items.astype(jnp.float32)))

    def memories(self, batch: dict[str, Any]) -> dict[str, Memory]:
        """What each stream knows of the batch's users.

        A timeline's depends on the users alone, a persona on what they ask, too.
        """
        shown = {name: batch[name] for name in SHOWN if name in batch}
        if any(getattr(stream, "embedded", False) for stream in self.streams.values()):
            shown["embedding_length"] = self.decoder.embedding_length()
        return {name: remembered(name, self.streams[name], shown) for name in self.system.by_name}

    def own_losses(
        self, batch: dict[str, Any]
    ) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """What streams add to the loss of training, each a sum and over how many users it is."""
        streams = {name: x for name, x in self.streams.items() if hasattr(x, "own_loss")}
        own = {f"{name}_stream": stream.own_loss(batch) for name, stream in streams.items()}
        return {name: sums for name, sums in own.items() if sums is not None}

    def fuse(self, memories: dict[str, Memory]) -> Memory | None:
        """All memories side by side in the decoder's width; None where none is read."""
        if not self.system.remembers:
            return None
        dtype = self.decoder.config.dtype
        tokens = [
            self.projectors[name](m.tokens.astype(dtype))
            if name in self.projectors
            else m.tokens.astype(dtype)
            for name, m in memories.items()
        ]
        if self.kinds is not None:
            tokens = [
                x + kind.astype(dtype) for x, kind in zip(tokens, self.kinds[...], strict=True)
            ]
        mask = jnp.concatenate([m.mask for m in memories.values()], axis=1)
        if not self.system.crossed:  # a prompt has no holes; one that places them has none before
            mask = jnp.full_like(mask, not self.system.interleaved)
        return Memory(jnp.concatenate(tokens, axis=1), mask)

    def hidden(self, batch: dict[str, Any]) -> Float[Array, "B T D"]:
        """The decoder's last hidden states for `batch["tokens"]`."""
        return self.read(batch, self.fuse(self.memories(batch)))

    def read(self, batch: dict[str, Any], memory: Memory | None) -> Float[Array, "B T D"]:
        """The same, given the memory."""
        x = self.speaker().embed(batch["tokens"])
        if memory is None or self.system.crossed:
            return self.decoder.hidden(x, memory)
        if self.system.interleaved:
            return self.decoder.hidden(placed(x, batch["tokens"], memory))
        prefixed = jnp.concatenate([memory.tokens, x], axis=1)
        return self.decoder.hidden(prefixed)[:, memory.tokens.shape[1] :]

    def attention(self, batch: dict[str, Any]) -> Float[Array, "G B T E"]:
        """What share of its look at the timeline each cross-attention gives to each event.

        For every token; the shares of a token are 1 in sum, unless it sees latents alone.

        Raises:
          ValueError: it has no timeline, or no cross-attention that all its streams share.
        """
        memory = self.fuse(self.memories(batch))
        if memory is None or not self.system.looks:
            raise ValueError(
                "only a system with a timeline and a cross-attention that all its streams share "
                "looks at events"
            )
        looks = self.decoder.looks(self.decoder.embed(batch["tokens"]), memory)
        events = self.streams["timeline"].weights(batch)  # [B, M, E]
        shares = jnp.einsum("gbtm,bme->gbte", looks[..., : events.shape[1]], events)
        return shares / jnp.maximum(shares.sum(-1, keepdims=True), 1e-9)

    def __call__(self, batch: dict[str, Any]) -> Float[Array, "B T V"]:
        """Logits of each next token of `batch["tokens"]` for the user of `batch["events"]`."""
        return self.speaker().logits(self.hidden(batch))


def check(system: SystemConfig) -> None:
    """Refuses settings that contradict each other.

    Raises:
      ValueError: naming the fields and how to mend them.
    """
    if (system.strategy == "lora") != (system.lora.rank > 0):
        raise ValueError(
            f"strategy={system.strategy!r} with lora.rank={system.lora.rank}: "
            "adapters and the strategy 'lora' come together"
        )
    timeline = "timeline" in system.streams
    if timeline and system.remembers and not system.crossed and not system.perceiver.latents:
        raise ValueError("fusion='soft_prompt' needs perceiver.latents > 0: a prompt has no holes")
    if system.item_tokens and not timeline:
        raise ValueError(
            f"item_tokens are made by a timeline's encoder; streams={system.streams} has none"
        )
    apart = system.difference
    if system.interleaved and (
        system.streams != ("difference",)
        or apart.compressor != "autoencoder"
        or not 0 < system.text_history <= apart.events
        or system.retrieval != "recency"
        or system.text_summary
    ):
        raise ValueError(
            'fusion="interleaved" places the tokens of each event behind its words: it needs '
            'streams=("difference",), difference.compressor="autoencoder", retrieval="recency", '
            f"no text_summary, and text_history between 1 and difference.events={apart.events}"
        )
    if system.streams and not system.remembers and not system.item_tokens:
        raise ValueError("fusion='none' leaves the streams unread; set item_tokens, or streams=()")


def check_counts(system: SystemConfig, counts: Mapping[str, int | None]) -> None:
    """Refuses streams whose memories may be of any length where that must be known beforehand.

    Raises:
      ValueError: naming them.
    """
    fixed = [*counts] if system.remembers and system.fusion == "soft_prompt" else []
    if system.apart:
        fixed = [*counts][1:]
    if loose := [name for name in fixed if counts[name] is None]:
        raise ValueError(
            f"fusion={system.fusion!r} with cross_attention.apart={system.cross_attention.apart} "
            f"takes streams with a fixed number of tokens; give {', '.join(loose)} a `count`"
        )


def remembered(name: str, stream: Stream, batch: dict[str, Any]) -> Memory:
    """What a stream knows of a batch's users.

    Raises:
      ValueError: that is no memory, or not of the sizes that the stream tells.
    """
    memory, users = stream(batch), batch["segments"].shape[0]
    if not isinstance(memory, Memory):
        raise ValueError(f"the stream {name} made {type(memory).__name__} of a batch, no Memory")
    count = getattr(stream, "count", None) or memory.tokens.shape[1]
    wanted = (users, count, stream.width), (users, count), bool
    found = memory.tokens.shape, memory.mask.shape, memory.mask.dtype
    if found != wanted:
        raise ValueError(
            f"the stream {name} made tokens {found[0]} and a mask {found[1]} of {found[2]}; its "
            f"width and count make that {wanted[0]} and {wanted[1]} of bool"
        )
    return memory


def trained(system: SystemConfig) -> Callable[[tuple, Any], bool]:
    """The filter of the parameters that a system's strategy moves (arXiv 2402.13598, section 3.3).

    `full`: all. `encoder`: all but the decoder's own. `lora`: as `encoder`, and the adapters.
    `projection`: only what stands between encoder and decoder. A frozen encoder is never moved,
    whether it is of timelines or of texts.
    """
    strategy, frozen = system.strategy, system.encoder_frozen or system.strategy == "projection"

    def moves(path: tuple, value: Any) -> bool:
        if isinstance(value, nnx.LoRAParam) or "cross" in path:
            return True
        if path[0] == "decoder":
            return strategy == "full"
        return not frozen or not {"encoder", "text_encoder"}.intersection(path)

    return moves
