"""Persona-Plug: a user's past texts as a memory, by how like the present text each of them is."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from user_llm.config import TEXT_VECTOR, FeatureConfig, PersonaConfig, TextEncoderConfig
from user_llm.models.blocks import gelu
from user_llm.models.encoders.base import unit
from user_llm.models.encoders.text import TextEncoder
from user_llm.models.layers import Linear, Memory
from user_llm.models.streams.base import Given
from user_llm.sharding import axes, constrain

PAPER_INSTRUCTION = 7.0  # what the authors' code divides the instruction's token by


class PersonaProjector(nnx.Module):
    """Linear, GELU, linear: from a text's vector to tokens in the decoder's width."""

    def __init__(self, inputs: int, width: int, tokens: int = 1, *, rngs: nnx.Rngs):
        self.width = width
        self.up_proj = Linear(inputs, width, ("embed", "mlp"), bias=True, rngs=rngs)
        self.down_proj = Linear(width, tokens * width, ("mlp", "embed"), bias=True, rngs=rngs)
        # Alone it is the token of who has no past text, and nothing has no direction.
        init = nnx.initializers.normal(0.02)
        self.down_proj.bias = nnx.Param(init(rngs.params(), (tokens * width,)), **axes("embed"))

    def __call__(
        self, x: Float[Array, "B H E"], weights: Float[Array, "B S H"]
    ) -> Float[Array, "B K D"]:
        """S weighted sums of projections of H vectors, whose weights are 1 in sum, or all 0."""
        # What follows the GELU is linear, so it is applied to the sums.
        sums = jnp.einsum("bsh,bhd->bsd", weights.astype(x.dtype), gelu(self.up_proj(x)))
        return self.down_proj(sums).reshape(len(x), -1, self.width)


class PersonaStream(nnx.Module):
    """A user's past texts as a token or more, by how like the present text each of them is.

    Source: Persona-Plug, arXiv 2409.11901, section 3, and its authors' code. The vectors of past
    texts are given and never trained; the text encoder that reads the present one is. Labels are
    ours: the paper's memory knows what a user wrote, not which stars or tag they gave it.

    Args:
      text_encoder: that past texts were embedded by; one like it reads the present text.
      width: the decoder's, in which the tokens are.
      item: what texts are labelled with, where the config wants labels.
    """

    embedded: ClassVar[bool] = True

    def __init__(
        self,
        config: PersonaConfig,
        text_encoder: TextEncoderConfig,
        width: int,
        item: FeatureConfig | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.config, self.width, self.count = config, width, config.width
        compares = config.weights == "attention"
        self.text_encoder = TextEncoder(text_encoder, rngs=rngs) if compares else None
        learned = config.learned_temperature and compares
        self.log_temperature = (
            nnx.Param(jnp.log(jnp.array(config.temperatures, jnp.float32))) if learned else None
        )
        read = text_encoder.hidden_size
        self.item = item if config.labels else None
        init = nnx.initializers.normal(read**-0.5)  # about as long as texts' vectors
        self.labels = (
            nnx.Param(init(rngs.params(), (self.item.size, read)), **axes("vocab", "embed"))
            if self.item
            else None
        )
        self.projector = PersonaProjector(read, width, config.tokens, rngs=rngs)
        self.instruction, self.instruction_projector = (
            (
                nnx.Param(nnx.initializers.uniform(1.0)(rngs.params(), (read,))),
                PersonaProjector(read, width, rngs=rngs),
            )
            if config.instruction
            else (None, None)
        )
        self.gain = nnx.Param(jnp.ones(())) if config.matched else None

    @classmethod
    def of(cls, given: Given, *, rngs: nnx.Rngs) -> "PersonaStream":
        """That of a system.

        Raises:
          ValueError: no text encoder is given.
        """
        if given.text_encoder is None:
            raise ValueError("the persona stream compares texts; give it their encoder's config")
        config, width = given.system.persona, given.decoder.hidden_size
        return cls(config, given.text_encoder, width, given.features[0], rngs=rngs)

    def __call__(self, batch: dict[str, Any]) -> Memory:
        """The memory of a batch's users, its tokens about as long as the decoder's embeddings.

        To users without a past text it is the same: the instruction, and what a bias makes of none.

        Args:
          batch: the `events` with the vectors of their texts, the `segments`, not 0 where there is
            an event, of the `present` text the `tokens` and their `mask` [B, T], and the
            `embedding_length`.
        """
        past, _ = self.past(batch)
        if self.item is not None and self.labels is not None:
            table = constrain(self.labels[...].astype(past.dtype), "vocab", None)
            past = past + table[batch["events"][self.item.name]]
        tokens = self.projector(past, self.weights(batch))
        if self.instruction is not None and self.instruction_projector is not None:
            one = jnp.ones((1, 1, 1), past.dtype)
            first = self.instruction_projector(self.instruction[...][None, None], one)
            first = first if self.config.matched else first / PAPER_INSTRUCTION
            first = jnp.broadcast_to(first, (len(tokens), 1, self.width))
            tokens = jnp.concatenate([first, tokens], axis=1)
        tokens = self._as_long(tokens, batch["embedding_length"])
        return Memory(tokens, jnp.ones(tokens.shape[:2], bool))

    def past(self, batch: dict[str, Any]) -> tuple[Float[Array, "B H E"], Bool[Array, "B H"]]:
        """The vectors of past texts, and where there are any."""
        column = batch["events"][TEXT_VECTOR]
        return column[..., :-1], (column[..., -1] > 0) & (batch["segments"] > 0)

    def weights(self, batch: dict[str, Any]) -> Float[Array, "B S H"]:
        """How much of each sum every past text makes up: 1 in all, 0 where there is none."""
        vectors, mask = self.past(batch)
        mask = mask[:, None]
        if self.text_encoder is None:
            shares = mask.astype(jnp.float32)
            return shares / jnp.maximum(shares.sum(-1, keepdims=True), 1)
        present = self.text_encoder(**batch["present"])
        scores = jnp.einsum("be,bhe->bh", present, vectors.astype(jnp.float32))
        scores = scores[:, None] / self.temperatures()[:, None]
        shares = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
        return shares * mask.any(-1, keepdims=True).astype(jnp.float32)

    def temperatures(self) -> Float[Array, " S"]:
        if self.log_temperature is None:
            return jnp.array(self.config.temperatures, jnp.float32)
        return jnp.exp(self.log_temperature[...])

    def _as_long(self, tokens: Float[Array, "B K D"], length: Float[Array, ""]) -> Array:
        length = jax.lax.stop_gradient(length).astype(tokens.dtype)
        return tokens * length if self.gain is None else unit(tokens) * (length * self.gain[...])
