"""How each stage is trained, and how a run is judged."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from user_llm.config.base import Config, Task


class OptimConfig(Config):
    """AdamW with a linear warm-up, then a constant or a cosine rate."""

    learning_rate: float = Field(default=1e-3, gt=0)
    encoder_rate: float = Field(default=1.0, gt=0)  # the share of it that a system's encoders get
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
    accumulate: PositiveInt = 1  # parts of it that are gone through one after the other in a step
    optim: OptimConfig = OptimConfig()
    log_every: PositiveInt = 20
    validate_every: NonNegativeInt = 0  # 0: no validation, and the last checkpoint is the best
    checkpoint_every: PositiveInt = 200
    keep: PositiveInt = 2  # checkpoints, beside the best
    keep_every: NonNegativeInt = 0  # and those of every so many steps, for good; 0: no others
    # Steps in a row that are passed over as harmful: their loss is not finite, or a spike.
    skips: NonNegativeInt = 10
    stuck_after: NonNegativeFloat = 1800.0  # seconds without a step that end a process; 0: never
    patience: NonNegativeInt = 0  # validations without a gain that end the stage; 0: never
    workers: NonNegativeInt = 0  # processes that prepare batches

    @model_validator(mode="after")
    def _whole_parts(self):
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of accumulate={self.accumulate}"
            )
        return self


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
    weights: dict[str, float] = Field(default={})  # by feature; 1 where none is given


class WarmupConfig(StageConfig):
    """The stage in which the decoder learns words."""

    tokens: NonNegativeInt = 0  # of a row; 0: as many as fine-tuning's have at most
    practice: PositiveInt = 1  # times that each question stands among the texts


class PretrainConfig(StageConfig):
    """The stage in which the encoder learns users."""

    objective: ObjectiveConfig = ObjectiveConfig()


class FinetuneConfig(StageConfig):
    """The stage in which the decoder meets users."""

    tasks: dict[Task, float] = Field(default={"next_item": 1.0})  # with their share of the examples
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
