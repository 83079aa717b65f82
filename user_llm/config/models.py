"""What is built: encoders, streams, decoders, and the system that they make together."""

import re
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from user_llm.config.base import (
    STREAMS,
    Config,
    Dtype,
    EncoderKind,
    Fusion,
    Remat,
    Retrieval,
    Strategy,
)
from user_llm.config.data import DataConfig
from user_llm.config.streams import DifferenceConfig, PerceiverConfig, PersonaConfig

OWN_STREAM = re.compile(r"(\w+\.)*\w+:\w+")


class EncoderConfig(Config):
    """A user encoder; the sizes are our choice where the papers give none.

    `autoregressive`: User-LLM's causal Transformer (arXiv 2402.13598); `gated` gives its layers a
    sigmoid gate on every residual (LiGR, arXiv 2502.03417). `hstu`: pointwise attention with biases
    of position and time (arXiv 2402.17152). `bert4rec`: both ways, masked events (arXiv
    1904.06690). `dual`: a tower for users and one for items, User-LLM's baseline.
    """

    kind: EncoderKind = "autoregressive"
    window: PositiveInt = 200  # events
    embed: PositiveInt = 64  # width of the hidden states and of the item embeddings
    feature_embed: PositiveInt = 32  # width of every other feature's embedding
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    mlp: PositiveInt = 256  # hstu has none
    gated: bool = False
    dropout: float = Field(default=0.2, ge=0, lt=1)
    similarity: Literal["cosine", "dot"] = "cosine"  # of state and item
    temperature: float = Field(default=0.05, gt=0)  # that it is divided by
    content: tuple[str, ...] = ()  # item features that make an item's vector beside its id
    id_dropout: float = Field(default=0.0, ge=0, lt=1)  # share of the ids hidden in a step
    time_bias: bool = True  # of hstu: attention knows the time between events
    query_time: bool = False  # of hstu: and when the next one is asked for
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _consistent(self):
        pairs = 2 if self.kind in ("autoregressive", "dual") else 1  # rotary positions turn pairs
        if self.embed % (pairs * self.heads):
            times = "2 * " if pairs == 2 else ""
            raise ValueError(
                f"encoder.embed={self.embed} must be a multiple of {times}heads={self.heads}"
            )
        if self.id_dropout and not self.content:
            raise ValueError("encoder.id_dropout hides ids behind encoder.content; name some")
        return self

    @property
    def reads_clock(self) -> bool:
        """Whether the encoder needs to know when events were, not only in which order."""
        return self.kind == "hstu" and self.time_bias


PROJECTIONS = {  # a decoder block's
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


class LoRAConfig(Config):
    """Low-rank adapters (arXiv 2106.09685) on the projections that `targets` name; rank 0: none.

    A target is a pattern, such as `*`, `mlp.*` or `[qv]_proj`, of a projection's own name or of the
    one with its module before it.
    """

    rank: NonNegativeInt = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    @model_validator(mode="after")
    def _found(self):
        names = [f"{module}.{x}" for module, own in PROJECTIONS.items() for x in own]
        if lost := [x for x in self.targets if not any(named(x, name) for name in names)]:
            raise ValueError(f"lora.targets {lost} match no projection; there are {names}")
        return self

    @property
    def scale(self) -> float:
        """What the product of the low-rank factors is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0

    def of(self, module: str) -> "LoRAConfig":
        """The same for one module's projections, its targets their own names."""
        own = [
            x for x in PROJECTIONS[module] if any(named(t, f"{module}.{x}") for t in self.targets)
        ]
        return self.model_copy(update={"targets": tuple(own)})


def named(pattern: str, name: str) -> bool:
    """Whether a pattern is a projection's name, with or without its module."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.split(".")[-1], pattern)


class CrossAttentionConfig(Config):
    """Gated cross-attention at the end of every group of `every` decoder layers."""

    every: PositiveInt = 2
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None  # that they share; None: each has keys of its own
    # The tanh gate's value at the start; 0 leaves the plain decoder untouched.
    gate: float = Field(default=0.5, gt=-1, lt=1)
    apart: bool = False  # each stream has one of its own, one after the other; else they share it

    @model_validator(mode="after")
    def _whole_shares(self):
        if self.heads % (self.kv_heads or 1):
            raise ValueError(
                f"cross_attention.heads={self.heads} must be a multiple of kv_heads={self.kv_heads}"
            )
        return self


class RopeScaling(Config):
    """How the angles of rotary positions are slowed down for longer texts than before.

    `linear`: all by `factor` (arXiv 2306.15595). `llama3`: those that turn less than
    `low_freq_factor` times in the original length by `factor`, those that turn more than
    `high_freq_factor` times not at all, and between them gradually (Llama 3.1, arXiv 2407.21783).
    """

    rope_type: Literal["linear", "llama3"]
    factor: float = Field(gt=0)
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: PositiveInt | None = None

    @model_validator(mode="after")
    def _complete(self):
        own = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        wrong = [x for x in own if (getattr(self, x) is None) == (self.rope_type == "llama3")]
        if wrong:
            raise ValueError(f"rope_type {self.rope_type!r} with {', '.join(wrong)} wrongly set")
        return self


ModelType = Literal["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"]
LayerType = Literal["full_attention", "sliding_attention"]


class DecoderConfig(Config):
    """A decoder's architecture, in the words of Hugging Face's `config.json`."""

    # The fields that say how it computes, which its weights leave open.
    COMPUTING: ClassVar[set[str]] = {"dtype", "param_dtype", "remat"}

    model_type: ModelType = "llama"  # the family, whose peculiarities are in `models.families`
    vocab_size: PositiveInt = 1024
    hidden_size: PositiveInt = 128
    intermediate_size: PositiveInt = 352
    num_hidden_layers: PositiveInt = 4
    num_attention_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt = 2
    head_dim: PositiveInt = 32
    max_position_embeddings: PositiveInt = 512
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rope_local_base_freq: float | None = None  # theta of the layers that slide; None: the same
    sliding_window: PositiveInt | None = None  # tokens that a sliding layer sees, its own included
    layer_types: tuple[LayerType, ...] = ()  # empty: all slide if there is a window, else none
    query_pre_attn_scalar: PositiveInt | None = (
        None  # scores are divided by its root; None: head_dim
    )
    attn_logit_softcapping: float | None = None  # c of c * tanh(x / c); None: not capped
    final_logit_softcapping: float | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    dtype: Dtype = "float32"  # of the activations
    param_dtype: Dtype = "float32"  # of the weights at rest
    # What training keeps of each layer for the way back, where the rest is made anew: its input
    # alone (`full`), what its products and its attention give as well (`dots`), or all (`none`).
    remat: Remat = "full"

    @model_validator(mode="after")
    def _consistent(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if len(self.layer_types) not in (0, self.num_hidden_layers):
            raise ValueError(
                f"layer_types names {len(self.layer_types)} of {self.num_hidden_layers} layers"
            )
        if "sliding_attention" in self.layer_types and not self.sliding_window:
            raise ValueError("layer_types has sliding_attention; give its sliding_window")
        return self

    @property
    def shares_width(self) -> bool:
        """Whether the heads together are as wide as the hidden states."""
        return self.head_dim * self.num_attention_heads == self.hidden_size

    @property
    def slides(self) -> tuple[bool, ...]:
        """Which layers see no further back than `sliding_window`."""
        if self.layer_types:
            return tuple(kind == "sliding_attention" for kind in self.layer_types)
        return (self.sliding_window is not None,) * self.num_hidden_layers


class TextEncoderConfig(Config):
    """A text encoder of BERT's family, in the words of Hugging Face's `config.json`.

    And how it makes a vector of a text: of its first token's state (`cls`) or of the mean of all.
    """

    vocab_size: PositiveInt = 30_522
    hidden_size: PositiveInt = 384
    intermediate_size: PositiveInt = 1536
    num_hidden_layers: PositiveInt = 6
    num_attention_heads: PositiveInt = 12
    max_position_embeddings: PositiveInt = 512
    type_vocab_size: PositiveInt = 2
    layer_norm_eps: float = 1e-12
    hidden_act: Literal["gelu", "gelu_new", "relu"] = "gelu"
    pooling: Literal["cls", "mean"] = "mean"
    normalize: bool = True  # vectors of unit length
    max_tokens: PositiveInt = 512  # of a text; its end is cut
    dtype: Dtype = "float32"  # of the activations

    @model_validator(mode="after")
    def _consistent(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.max_tokens > self.max_position_embeddings:
            raise ValueError(
                f"max_tokens={self.max_tokens} are more than the "
                f"max_position_embeddings={self.max_position_embeddings}"
            )
        return self


class LanguageModelConfig(Config):
    """The decoder: weights in Hugging Face layout, another run's, or an architecture to initialise.

    Its warm-up reads what the run's data set and the `corpora` say in words.
    """

    weights: str = ""  # a folder, below $USER_LLM_DATA unless absolute
    from_run: str = ""  # the folder of a run whose language model this is
    from_stage: Literal["warmup", "finetune"] = "warmup"  # which of its stages has trained it
    architecture: DecoderConfig = DecoderConfig()  # of the others, dtypes and remat alone
    corpora: tuple[DataConfig, ...] = ()  # further data sets, of them the training events
    reviews: PositiveInt = 10_000  # events of each data set whose reviews it reads at most
    held_out: float = Field(default=0.0, ge=0, lt=1)  # share of the texts that only judges

    @model_validator(mode="after")
    def _one_origin(self):
        if self.weights and self.from_run:
            raise ValueError(
                f"language_model.weights={self.weights} and from_run={self.from_run} are two "
                "origins of one language model; name one of them"
            )
        return self


class SystemConfig(Config):
    """Streams × fusion × decoder, and what of them is trained."""

    streams: tuple[str, ...] = ("timeline",)  # of STREAMS, or one's own as module:Class
    fusion: Fusion = "cross_attention"
    cross_attention: CrossAttentionConfig = CrossAttentionConfig()
    perceiver: PerceiverConfig = PerceiverConfig()
    persona: PersonaConfig = PersonaConfig()
    difference: DifferenceConfig = DifferenceConfig()
    lora: LoRAConfig = LoRAConfig()
    strategy: Strategy = "full"
    encoder_frozen: bool = False  # whatever the strategy; with "projection" it is always
    text_history: NonNegativeInt = 0  # events of the history written into the prompt
    retrieval: Retrieval = "recency"  # which events they are
    text_summary: bool = False  # a summary of the history is written there, before those events
    item_tokens: bool = False  # items are tokens behind the vocabulary's, and next items one each

    @model_validator(mode="after")
    def _known_streams(self):
        for stream in self.streams:
            if stream not in STREAMS and not OWN_STREAM.fullmatch(stream):
                raise ValueError(
                    f"system.streams: {stream!r} is none of {', '.join(STREAMS)}; one's own is "
                    "named by where it is, module:Class"
                )
        if len(self.by_name) < len(self.streams):
            raise ValueError(
                f"system.streams={self.streams} has two of one name, by which their parts go; "
                "rename the class of one"
            )
        return self

    @property
    def by_name(self) -> dict[str, str]:
        """The streams by the names of their parts, in the order of their memories."""
        own = [stream for stream in self.streams if stream not in STREAMS]
        order = [stream for stream in STREAMS if stream in self.streams] + own
        return {stream.rpartition(":")[2]: stream for stream in order}

    @property
    def remembers(self) -> bool:
        """Whether the decoder reads a memory; of fusion "none" it has the items at most."""
        return bool(self.streams) and self.fusion != "none"

    @property
    def crossed(self) -> bool:
        """Whether it does so by cross-attention, else the memory stands before or in the prompt."""
        return self.remembers and self.fusion == "cross_attention"

    @property
    def interleaved(self) -> bool:
        """Whether its tokens stand in the prompt, behind what that tells of their events."""
        return self.remembers and self.fusion == "interleaved"

    @property
    def apart(self) -> bool:
        """Whether each stream has a cross-attention of its own."""
        return self.crossed and self.cross_attention.apart and len(self.streams) > 1

    @property
    def looks(self) -> bool:
        """Whether it can be told how a cross-attention looks at events."""
        return self.crossed and "timeline" in self.streams and not self.apart

    @property
    def told(self) -> bool:
        """Whether the prompt speaks of the history."""
        return bool(self.text_history) or self.text_summary
