"""What an answer costs by formula: tokens, operations, and bytes that are kept of a user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from user_llm.config import DecoderConfig, EncoderConfig, FeatureConfig, SystemConfig
from user_llm.evaluation import flops
from user_llm.models.encoders import ENCODERS

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Sizes:
    """How long what one user is asked is."""

    history: int  # events
    question: int  # tokens
    told: int | None  # tokens of the prompt that spells the events out; None: there is no room
    kept: int  # of which these stand before the question, and are kept
    event: int  # tokens of one event more


@dataclass(frozen=True)
class Shape:
    """A User-LLM as its costs depend on it."""

    system: SystemConfig
    decoder: DecoderConfig
    encoder: EncoderConfig
    features: tuple[FeatureConfig, ...]
    items: int = 0  # tokens behind the decoder's words, which a reader of a memory has

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Shape":
        """The shape that `described` tells."""
        kinds = {"system": SystemConfig, "decoder": DecoderConfig, "encoder": EncoderConfig}
        parts = {name: kind(**described[name]) for name, kind in kinds.items()}
        features = tuple(FeatureConfig(**x) for x in described["features"])
        return cls(features=features, items=described["items"], **parts)

    def described(self) -> dict[str, Any]:
        """The shape as JSON."""
        parts = {name: getattr(self, name) for name in ("system", "decoder", "encoder")}
        told = {name: part.model_dump(mode="json") for name, part in parts.items()}
        features = [x.model_dump(mode="json") for x in self.features]
        return told | {"features": features, "items": self.items}

    def memory_tokens(self, events: int) -> int:
        """Those of a user's memory: the latents and the newest event, or every event."""
        latents = self.system.perceiver.latents
        return (latents + 1 if latents else events) if self.system.remembers else 0

    def memory(self, events: int, known: int = 0) -> int:
        """Operations that make a user's memory in the decoder's width.

        Args:
          known: events of which the encoder has kept its keys and values.
        """
        if not self.system.remembers:
            return 0
        width, latents = 2 * self.encoder.embed, self.system.perceiver.latents
        newest = 2 * width * events if latents else 0  # which a product picks
        return (
            flops.encoder(self.encoder, self.features, events - known, known)
            + flops.perceiver(self.system.perceiver, width, events)
            + newest
            + flops.projector(width, self.decoder.hidden_size, self.memory_tokens(events))
        )

    def first_token(self, question: int, events: int) -> int:
        """Operations from a kept memory to the logits after the question."""
        memory = self.memory_tokens(events)
        if not self.system.crossed:
            return self.said(memory + question)
        made = flops.cross_keys_values(self.decoder, self.system.cross_attention, memory)
        return made + self.first_token_of_keys(question, events)

    def first_token_of_keys(self, question: int, events: int) -> int:
        """The same from the keys and values that the decoder makes of a memory."""
        memory = self.memory_tokens(events)
        if not self.system.crossed:
            return self.said(question, memory)
        cross = self.system.cross_attention
        read = flops.cross_attention(self.decoder, cross, question, memory)
        return read + self.said(question)

    def step(self, before: int, events: int) -> int:
        """Operations of one more token after those before, for the reader of a memory."""
        memory = self.memory_tokens(events)
        if not self.system.crossed:
            return self.said(1, memory + before)
        cross = self.system.cross_attention
        return self.said(1, before) + flops.cross_attention(self.decoder, cross, 1, memory)

    def text(self, tokens: int, before: int = 0) -> int:
        """Operations of the decoder alone, from new tokens to the logits after them."""
        return flops.decoder(self.decoder, tokens, before, self.system.lora) + flops.head(
            self.decoder
        )

    def said(self, tokens: int, before: int = 0) -> int:
        """The same of the decoder that can say items too, without how their tokens are made."""
        return self.text(tokens, before) + 2 * self.decoder.hidden_size * self.items

    def memory_bytes(self, events: int) -> int:
        """What is kept of a memory: its tokens in the decoder's width, and which there are."""
        return self.memory_tokens(events) * (self.decoder.hidden_size * self._wide + 1)

    def key_bytes(self, events: int) -> int:
        """What the keys and values that the decoder makes of a memory take."""
        if not self.system.crossed:
            return self.cache_bytes(self.memory_tokens(events))
        groups, _, shared = flops.cross_widths(self.decoder, self.system.cross_attention)
        return 2 * groups * shared * self.memory_tokens(events) * self._wide

    def cache_bytes(self, tokens: int) -> int:
        """What the decoder's keys and values of so many tokens take."""
        config = self.decoder
        held = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return held * tokens * self._wide

    @property
    def _wide(self) -> int:
        return BYTES[self.decoder.dtype]


def rows(shape: Shape, sizes: Sizes) -> list[dict[str, Any]]:
    """What each system costs for one user with such a history, by formula.

    `flops` are those up to the first token, `step_flops` those of the second, `bytes` what is kept
    of the user between two questions: a memory, the keys and values that the decoder makes of it,
    or those of a text. `event_flops` is what one new event costs that is kept. The program makes a
    memory anew for it; with the encoder's keys and values kept it would cost `event_flops_at_best`.
    Text goes on from its prefix, until the oldest events have to go: then every position moves, and
    it costs `event_flops_full`.
    """
    events, question = sizes.history, sizes.question
    reads, warm = shape.memory(events), shape.first_token(question, events)
    before = 0 if shape.system.crossed else shape.memory_tokens(events)
    causal = ENCODERS[shape.encoder.kind].causal
    ours = {
        "history": events,
        "prompt_tokens": before + question,
        "step_flops": shape.step(question, events),
    }
    found = [
        {"system": "user_llm", **ours, "flops": reads + warm, "bytes": 0},
        {
            "system": "user_llm, memory kept",
            **ours,
            "flops": warm,
            "bytes": shape.memory_bytes(events),
            "event_flops": reads,
            "event_flops_at_best": shape.memory(events, events - 1) if causal else reads,
        },
        {
            "system": "user_llm, keys kept",
            **ours,
            "flops": shape.first_token_of_keys(question, events),
            "bytes": shape.key_bytes(events),
        },
    ]
    if sizes.told is None:
        return found
    text = {
        "history": events,
        "prompt_tokens": sizes.told,
        "step_flops": shape.text(1, sizes.told),
    }
    return [
        *found,
        {"system": "text_prompt", **text, "flops": shape.text(sizes.told), "bytes": 0},
        {
            "system": "text_prompt, prefix kept",
            **text,
            "flops": shape.text(sizes.told - sizes.kept, sizes.kept),
            "bytes": shape.cache_bytes(sizes.kept),
            "event_flops": shape.text(sizes.event, sizes.kept),
            "event_flops_full": shape.text(sizes.kept),
        },
    ]


def plain(shape: Shape, sizes: Sizes) -> dict[str, Any]:
    """What the question alone costs, of a decoder that knows nothing of the user."""
    return {
        "system": "no_context",
        "history": sizes.history,
        "prompt_tokens": sizes.question,
        "step_flops": shape.text(1, sizes.question),
        "flops": shape.text(sizes.question),
        "bytes": 0,
    }
