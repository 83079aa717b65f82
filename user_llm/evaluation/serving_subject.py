"""What the serving benchmark serves: the export of a run around a User-LLM of the published shape.

Its weights are random, but for those of tokens that nobody would see: an answer never ends before
it is as long as was asked for, and each of its tokens shows.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from user_llm import stages
from user_llm.config import (
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EvaluationConfig,
    Experiment,
    FinetuneConfig,
    LanguageModelConfig,
    PretrainConfig,
    WarmupConfig,
)
from user_llm.data import unseen
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.tasks import corpus, history_text, next_item_prompt
from user_llm.data.text import Tokenizer
from user_llm.data.timelines import sample
from user_llm.evaluation import sides
from user_llm.evaluation.decode_benchmark import write_random
from user_llm.evaluation.inference_subject import published
from user_llm.files import write_folder
from user_llm.runs import Run
from user_llm.serving import export
from user_llm.sharding import make_mesh
from user_llm.sources import built, opened

DATA, DATASETS = DataConfig(users=200), "datasets"  # and the folder beside the subject's
REVIEWS = 5000  # that the tokenizer is learned from
EPOCH, HOUR = 1_640_995_200, 3600  # 2022-01-01
SUBJECT = "user_llm.evaluation.serving_subject"  # this module, as a program
QUESTION = next_item_prompt(DATA.noun)

Event = dict[str, Any]


class Subject(NamedTuple):
    """A run and its export."""

    run: Run
    export: Path

    @property
    def decoder(self) -> Path:
        """The language model alone, in Hugging Face's layout."""
        return self.export / "decoder"

    def told(self, events: Sequence[Event]) -> str:
        """The question behind such events as text."""
        data = unseen.encode(self.run.dataset, [events])
        return history_text(data, np.arange(len(events)), noun=DATA.noun) + QUESTION

    def tokens(self, prompt: str) -> int:
        """How many a prompt takes."""
        return len(self.run.tokenizer.prompts([prompt])[0])


@dataclass(frozen=True)
class Preparation:
    """A subject that is to be in a folder; in a process of its own, which lets the device go."""

    folder: str
    decoder: dict[str, Any]
    encoder: dict[str, Any]


def made(folder: Path, decoder: DecoderConfig, encoder: EncoderConfig) -> Subject:
    """The subject in a folder, written unless it is there.

    Raises:
      ValueError: it could not be written, or another subject's run is there.
    """
    folder = folder.absolute()
    sides.run(SUBJECT, Preparation(str(folder), decoder.model_dump(), encoder.model_dump()))
    return Subject(Run.open(folder / "run", folder.parent / DATASETS), folder / "export")


def prepare(folder: Path, decoder: DecoderConfig, encoder: EncoderConfig) -> None:
    """Writes a subject's run and export where they are not there.

    One small step trains all but the decoder, since nothing untrained is exported.

    Raises:
      ValueError: another subject's run is there.
    """
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    decoder = decoder.model_copy(update={"dtype": dtype, "param_dtype": dtype})
    weights, data_dir = folder / "weights", folder.parent / DATASETS
    if not weights.is_dir():
        write_folder(weights, lambda new: write_weights(new, decoder, data_dir))
    experiment = Experiment(
        name=folder.name,
        data=DATA,
        encoder=encoder,
        language_model=LanguageModelConfig(weights=str(weights), architecture=decoder),
        system=published(decoder).system.model_copy(update={"strategy": "projection"}),
        pretrain=PretrainConfig(steps=0),
        warmup=WarmupConfig(steps=0),
        finetune=FinetuneConfig(steps=1, batch_size=1, history=encoder.window),
        evaluation=EvaluationConfig(baselines=()),
    )
    run = Run(experiment, folder / "run", data_dir)
    run.mesh = make_mesh(devices=jax.devices()[:1])
    if not (folder / "export").is_dir():
        stages.finetune(run)
        export.export(run, folder / "export")


def write_weights(folder: Path, config: DecoderConfig, data_dir: Path) -> None:
    """A decoder of random weights and a tokenizer of the data set's words.

    Greedy answers consist of tokens that are text by themselves: of the others, such as the end or
    a part of a letter, the head gives all the same, and less than the best of many random values.
    """
    data = opened(DATA, built(DATA, data_dir))
    texts = corpus(data, sample(np.arange(len(data.item)), REVIEWS))
    tokenizer = Tokenizer.train(texts, config.vocab_size, folder)
    write_random(folder, config, config.dtype)
    seen = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    shown = [token for token, text in enumerate(seen) if text and text.isascii()]
    path, name = folder / "model.safetensors", "lm_head.weight"
    params = load_file(path)
    head = params[name if name in params else "model.embed_tokens.weight"]
    head[np.setdiff1d(np.arange(len(head)), shown)] = 0
    save_file(params, path, {"format": "pt"})


def events_of(data: Dataset, user: int, count: int) -> list[Event]:
    """The first events of a user who likes everything alike, an hour apart."""
    ids, rng = data.items.ids, np.random.default_rng(user)
    drawn = rng.integers(KNOWN, len(ids), size=count).tolist()
    stars = rng.integers(1, 6, size=count).tolist()
    return [
        {"item": ids[item], "timestamp": EPOCH + HOUR * nth, "rating": rating, "review": None}
        for nth, (item, rating) in enumerate(zip(drawn, stars, strict=True))
    ]


def main() -> None:
    work = Preparation(**json.loads(sys.argv[1]))
    configs = DecoderConfig(**work.decoder), EncoderConfig(**work.encoder)
    prepare(Path(work.folder), *configs)
    print("{}")


if __name__ == "__main__":
    main()
