"""A run: one experiment in one folder, stage after stage, each resumable."""

import json
import zlib
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from user_llm.config import (
    TEXT_VECTOR,
    DecoderConfig,
    Experiment,
    SystemConfig,
    TextEncoderConfig,
)
from user_llm.data import timelines
from user_llm.data.dataset import Dataset
from user_llm.data.peers import check_clustering
from user_llm.data.tasks import corpus
from user_llm.data.text import PassageTokenizer, Tokenizer
from user_llm.files import AnyPath, entries, nearby, to_path, write_atomically
from user_llm.huggingface import check_decoder, decoder_config, text_encoder_config
from user_llm.inference import text_vectors
from user_llm.models.encoders import ENCODERS, Encoder
from user_llm.models.user_llm import UserLLM
from user_llm.sharding import make_mesh
from user_llm.sources import built, data_path, opened, split, text_encoder_folder


class Texts(NamedTuple):
    """What data sets say in words."""

    training: list[str]
    held_out: list[str]  # to judge language models by


class Training(NamedTuple):
    """A data set, and each user's first training event that is asked about, and where they stop."""

    data: Dataset
    firsts: np.ndarray
    stops: np.ndarray


class Run:
    """What the stages of an experiment share; each part is made when it is first asked for.

    Args:
      folder: of the run, here or in a bucket; all that its stages leave is below it.
      data_dir: where built data sets are.

    Raises:
      ValueError: the folder holds a run of another experiment.
    """

    def __init__(self, experiment: Experiment, folder: AnyPath, data_dir: Path = Path("datasets")):
        self.experiment, self.folder, self.data_dir = experiment, folder, data_dir
        self.widened: Dataset | None = None  # the data set with columns for streams, once made
        self.profiled = range(0)  # steps of each stage that are traced
        config = folder / "config.json"
        if config.is_file():
            # Read as an experiment, so that fields added since have their defaults.
            begun = Experiment.model_validate_json(config.read_text()).model_dump(mode="json")
            if begun == self.config:
                return
            if any(path != config for path in entries(folder)):
                refuse_differences(begun, self.config, folder)
            # Else nothing has come of it: it was refused, or stopped before its first stage.
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(config, json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def open(cls, folder: AnyPath, data_dir: Path = Path("datasets")) -> "Run":
        """The run in a folder.

        Raises:
          ValueError: there is none.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no run; start one with `user-llm run CONFIG`")
        text = (folder / "config.json").read_text()
        return cls(Experiment.model_validate_json(text), folder, data_dir)

    @property
    def earlier(self) -> "Run":
        """The run that this one grows from.

        Raises:
          ValueError: it is not there.
        """
        return Run.open(to_path(self.experiment.grow_from), self.data_dir)

    @cached_property
    def config(self) -> dict:
        """The experiment as JSON."""
        return self.experiment.model_dump(mode="json")

    @cached_property
    def mesh(self) -> Mesh:
        """The devices of the run, as `data`, `fsdp` and `tensor`."""
        return make_mesh(self.experiment.mesh)

    @cached_property
    def data_folder(self) -> Path:
        """Where the built data set lies; it is built now unless it is there."""
        return built(self.experiment.data, self.data_dir)

    @cached_property
    def dataset(self) -> Dataset:
        """What the experiment reads of its data set, with vectors of texts if it asks for them."""
        config = self.experiment.data
        data = opened(config, self.data_folder, clock=self.experiment.encoder.reads_clock)
        if not config.text_encoder:
            return data
        kept = text_vectors.of(
            self.text_encoder_folder,
            [data.review(event) for event in range(len(data.item))],
            self.data_dir / "text_vectors",
            self.mesh,
        )
        return data.with_vectors(kept, not config.features or TEXT_VECTOR in config.features)

    @cached_property
    def text_encoder_folder(self) -> Path:
        """Where the text encoder lies that `data.text_encoder` names.

        Raises:
          ValueError: there is neither such a package nor such a folder.
        """
        return text_encoder_folder(self.experiment.data.text_encoder)

    @cached_property
    def text_encoder_config(self) -> TextEncoderConfig | None:
        """The architecture of that text encoder, where one is named."""
        if not self.experiment.data.text_encoder:
            return None
        return text_encoder_config(self.text_encoder_folder)

    def passages(self, system: SystemConfig) -> PassageTokenizer | None:
        """What makes tokens of present texts for a system; None where none of its streams asks."""
        persona, config = system.persona, self.text_encoder_config
        if "persona" not in system.streams or persona.weights == "mean" or config is None:
            return None
        length = min(persona.query_tokens, config.max_tokens)
        return PassageTokenizer(self.text_encoder_folder, length, persona.query)

    @cached_property
    def split(self) -> timelines.Split:
        """Which events of which users train, validate and test, by `data.protocol`."""
        return split(self.experiment.data, self.dataset)

    def training_of(self, data: Dataset) -> Training:
        """What of the run's data set training reads.

        Events of held-out items are not in it, neither as what is asked for nor before it.
        """
        split = self.split
        if not split.held_out.any():
            return Training(data, split.train_first, split.train_stop)
        kept_before = np.concatenate([[0], np.cumsum(~split.held_out)])
        firsts, stops = (kept_before[x] for x in (split.train_first, split.train_stop))
        return Training(data.without(split.held_out), firsts, stops)

    @cached_property
    def training_events(self) -> np.ndarray:
        """All events that training may see, first ones of a timeline included."""
        return timelines.training_events(self.split, self.dataset.offsets)

    @cached_property
    def texts(self) -> Texts:
        """What the run's data set and its language model's `corpora` say in words.

        Of the training events' reviews, as many of a data set as the config asks for. A text's own
        checksum decides whether it is held out, so that it is so in every run.
        """
        model, known = self.experiment.language_model, [(self.dataset, self.training_events)]
        for data in model.corpora:
            other = opened(data, built(data, self.data_dir))
            known.append((other, timelines.training_events(split(data, other), other.offsets)))
        found = (corpus(data, timelines.sample(events, model.reviews)) for data, events in known)
        texts: dict[bool, list[str]] = {False: [], True: []}
        for text in dict.fromkeys(text for some in found for text in some):
            texts[zlib.crc32(text.encode()) < model.held_out * 2**32].append(text)
        return Texts(texts[False], texts[True])

    @property
    def held_out_texts(self) -> list[str]:
        """What language models are judged by; where that is nothing, no text is looked at."""
        return self.texts.held_out if self.experiment.language_model.held_out else []

    @cached_property
    def language_model_run(self) -> "Run | None":
        """The run whose language model this one's is.

        Raises:
          ValueError: it is not there, or its fine-tuned decoder is no plain one.
        """
        model = self.experiment.language_model
        if not model.from_run:
            return None
        lender = Run.open(to_path(model.from_run), self.data_dir)
        system = lender.experiment.system
        if model.from_stage == "finetune" and (system.crossed or system.strategy == "lora"):
            raise ValueError(
                f"language_model.from_run={model.from_run}: its fine-tuned decoder has parts that "
                "a plain one lacks; name a run without cross-attention and adapters"
            )
        self.share(lender)
        return lender

    def share(self, other: "Run") -> None:
        """Lends another run what both have alike and is slow to make: mesh and data set."""
        mine, theirs = self.experiment, other.experiment
        if mine.mesh == theirs.mesh:
            other.mesh = self.mesh
        clocks = (mine.encoder.reads_clock, theirs.encoder.reads_clock)
        if mine.data == theirs.data and clocks[0] == clocks[1]:
            other.dataset = self.dataset

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The pre-trained decoder's own, or one learned from the training texts."""
        model = self.experiment.language_model
        if lender := self.language_model_run:
            return lender.tokenizer
        if model.weights:
            return Tokenizer.load(data_path(model.weights))
        with nearby(self.folder / "tokenizer") as folder:
            if (folder / "tokenizer.json").is_file():
                return Tokenizer.load(folder)
            return Tokenizer.train(self.texts.training, model.architecture.vocab_size, folder)

    @cached_property
    def decoder_config(self) -> DecoderConfig:
        """The decoder's architecture: its weights' own, another run's, or the config's."""
        model = self.experiment.language_model
        types = model.architecture.model_dump(include=DecoderConfig.COMPUTING)
        if lender := self.language_model_run:
            return lender.decoder_config.model_copy(update=types)
        if not model.weights:
            return model.architecture
        return decoder_config(data_path(model.weights)).model_copy(update=types)

    def check_language_model(self) -> None:
        """Refuses weights and a tokenizer that do not fit, before anything is trained for them.

        Raises:
          ValueError: naming what is wrong with the folder's files, or that weights which are too
            narrow for small steps would be trained.
        """
        moved = self.experiment.warmup.steps or self.experiment.system.strategy == "full"
        if moved and (narrow := self.decoder_config.param_dtype) != "float32":
            raise ValueError(
                f"language_model.architecture.param_dtype={narrow} would lose the small steps of "
                "training in rounding; set it to float32, or warmup.steps to 0 and system.strategy "
                "to another than 'full'"
            )
        if weights := self.experiment.language_model.weights:
            check_decoder(data_path(weights), self.decoder_config)
            known, size = len(self.tokenizer), self.decoder_config.vocab_size
            if known > size:
                raise ValueError(
                    f"the tokenizer of {weights} has {known} tokens and its embeddings {size}; "
                    "take both from one model"
                )

    def check_systems(self) -> None:
        """Refuses systems that cannot be built, before anything is trained for them.

        Raises:
          ValueError: naming the settings that contradict each other, or a package that is missing.
        """
        for system in self.systems.values():
            make_model = self.make_model(system)
            nnx.eval_shape(lambda make_model=make_model: make_model(rngs=nnx.Rngs(0)))
            compares = "difference" in system.streams
            if compares and system.difference.peers.chosen == "representatives":
                check_clustering()

    @property
    def systems(self) -> dict[str, SystemConfig]:
        """The experiment's system and the baselines that are fine-tuned the same way."""
        own = self.experiment.system
        judged = self.experiment.evaluation
        plain = {"streams": (), "item_tokens": False, "text_history": 0, "text_summary": False}
        told = plain | {"text_history": judged.text_history}
        baselines = {"no_context": plain, "text_prompt": told}
        return {"user_llm": own} | {
            name: own.model_copy(update=changes)
            for name, changes in baselines.items()
            if name in judged.baselines
        }

    def make_model(self, system: SystemConfig) -> partial[UserLLM]:
        """The constructor of a system's model."""
        return partial(
            UserLLM,
            system,
            self.decoder_config,
            self.experiment.encoder,
            self.dataset.inputs,
            self.item_content,
            self.text_encoder_config,
        )

    @property
    def make_encoder(self) -> partial[Encoder]:
        """The constructor of the experiment's encoder."""
        config = self.experiment.encoder
        return partial(ENCODERS[config.kind], config, self.dataset.inputs, self.item_content)

    @cached_property
    def item_content(self) -> dict[str, np.ndarray]:
        """What an encoder is told of every item: its features, and whether training saw it."""
        seen = np.bincount(
            self.dataset.item[self.training_events], minlength=len(self.dataset.items.ids)
        )
        return {"trained": seen > 0, **self.dataset.items.features}


def refuse_differences(old: dict, new: dict, folder: AnyPath) -> None:
    """Raises a ValueError that names every field in which two experiments differ."""
    if differing := differing_fields(old, new):
        raise ValueError(
            f"{folder} holds a run of another experiment ({'; '.join(differing)}); "
            "choose another --run-dir, or remove it"
        )


def differing_fields(old: dict, new: dict) -> list[str]:
    """Every field in which two configs differ, in words."""
    a, b = flat(old), flat(new)
    return [f"{k}: {a.get(k)} there, {b.get(k)} now" for k in {**a, **b} if a.get(k) != b.get(k)]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """A config's values by their dotted names."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for n, x in tree.items() for k, v in flat(x, f"{path}.{n}" if path else n).items()}
