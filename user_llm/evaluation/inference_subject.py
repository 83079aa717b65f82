"""Who is asked in the inference benchmark: a made User-LLM of the published shape, or a run's own.

As a program, writes the prompts and the text prompt's decoder of a run for the other sides.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from user_llm import stages
from user_llm.config import (
    CrossAttentionConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    PerceiverConfig,
    SystemConfig,
)
from user_llm.data.examples import Examples
from user_llm.data.tasks import NextItem
from user_llm.data.timelines import user_of
from user_llm.evaluation.answer_costs import Shape, Sizes
from user_llm.evaluation.peers.answering import DECODER, TOKENS, Told, write
from user_llm.evaluation.system import Context, System
from user_llm.files import to_path
from user_llm.huggingface import load_decoder, save_decoder
from user_llm.inference.generate import Generator
from user_llm.models.layers import merged
from user_llm.models.user_llm import UserLLM
from user_llm.runs import Run

QUESTION = 32  # tokens that the published model reads beside the memory
EVENT = 12.5  # tokens of an event as text: the published 2,500 of 200
# The published encoder and Perceiver (arXiv 2402.13598), over events such as MovieLens' are.
ENCODER = EncoderConfig(window=400, embed=128, layers=6, heads=8, mlp=512)
PERCEIVER = PerceiverConfig(latents=16, layers=6)
FEATURES = (
    FeatureConfig(name="item", kind="categorical", size=3708, predicted=True),
    FeatureConfig(name="rating", kind="categorical", size=7, predicted=True),
    FeatureConfig(name="genres", kind="bag", size=20),
)
GENRES = 3  # of an event


class Prompt(NamedTuple):
    """What one user is asked."""

    question: list[int]
    told: Told | None  # None: the decoder has no room for it
    memory: Callable[[int], Context]  # made anew, of so many users like this one

    def sizes(self, history: int) -> Sizes:
        told = self.told
        lengths = (len(told.tokens), told.kept, told.event) if told else (None, 0, 0)
        return Sizes(history, len(self.question), *lengths)


@dataclass(frozen=True)
class Subject:
    """A User-LLM, a decoder that is told the same as text, and what they are asked by history."""

    shape: Shape
    reader: Generator
    teller: Generator
    prompts: dict[int, Prompt]


def published(decoder: DecoderConfig) -> Shape:
    """The published User-LLM around a decoder.

    Which layers read the memory it leaves open: here every fourth, as OpenFlamingo-9B's read
    pictures (says its model card), or every second where four do not divide them. Their heads share
    keys as the decoder's own do.
    """
    every = math.gcd(4, decoder.num_hidden_layers)
    heads, shared = decoder.num_attention_heads, decoder.num_key_value_heads
    cross = CrossAttentionConfig(every=every, heads=heads, kv_heads=shared)
    system = SystemConfig(perceiver=PERCEIVER, cross_attention=cross)
    return Shape(system, decoder, ENCODER, FEATURES)


def told(vocab_size: int, history: int) -> Told:
    """A question of random tokens after as many as spell such a history out."""
    kept = int(EVENT * history)
    tokens = np.random.default_rng(history).integers(vocab_size, size=kept + QUESTION)
    return Told(tokens, kept, int(np.ceil(EVENT)))


def made(shape: Shape, weights: Path, prompts: Mapping[int, Told]) -> Subject:
    """A User-LLM with random parts around the decoder in a folder, which is both sides' decoder."""
    make = partial(UserLLM, shape.system, shape.decoder, shape.encoder, shape.features)
    graphdef, state = nnx.split(jax.jit(lambda: make(rngs=nnx.Rngs(0)))())
    params = nnx.to_pure_dict(state)
    params["decoder"] = load_decoder(weights, params["decoder"])
    generator = Generator(nnx.merge(graphdef, params).speaker())

    @jax.jit
    def remember(params, batch):
        model = nnx.merge(graphdef, params)
        return model.fuse(model.memories(batch))

    def memory(history: int, users: int) -> Context:
        found = remember(params, random_events(shape.features, users, history))
        return {"memory": found} if shape.system.crossed else {"prefix": found}

    asked = {
        history: Prompt(told.tokens[told.kept :].tolist(), told, partial(memory, history))
        for history, told in prompts.items()
    }
    return Subject(shape, generator, generator, asked)


def random_events(features: tuple[FeatureConfig, ...], users: int, history: int) -> dict[str, Any]:
    """Timelines that are full."""
    rng = np.random.default_rng(0)

    def values(feature: FeatureConfig) -> np.ndarray:
        slots = (GENRES,) if feature.kind == "bag" else ()
        return rng.integers(feature.size, size=(users, history, *slots), dtype=np.int32)

    events = {feature.name: values(feature) for feature in features}
    return {"events": events, "segments": np.ones((users, history), np.int32)}


def of_run(run: Run, histories: Iterable[int], decoder: Path | None = None) -> Subject:
    """A run's system, and its text prompt as it was fine-tuned, or else the same decoder.

    Args:
      histories: those that no user has, or that its encoder cannot read, are left out.
      decoder: a folder in which the text prompt's decoder is to be written.
    """
    reader = System(run, "user_llm", stages.finetune(run))
    name = "text_prompt" if "text_prompt" in run.systems else "user_llm"
    teller = System(run, name, stages.finetune(run, name))
    if decoder is not None:
        params = merged(teller.params["decoder"], run.systems[name].lora)
        save_decoder(decoder, run.decoder_config, params)
    items = reader.generator.config.vocab_size - run.decoder_config.vocab_size
    shape = Shape(
        reader.config,
        run.decoder_config,
        run.experiment.encoder,
        tuple(run.dataset.inputs),
        items=items,
    )
    found = {history: prompt(run, reader, history) for history in histories}
    prompts = {history: asked for history, asked in found.items() if asked is not None}
    return Subject(shape, reader.generator, Generator(teller.model.decoder), prompts)


def prompt(run: Run, reader: System, history: int) -> Prompt | None:
    """What the first of the test's users with such a history is asked."""
    offsets, task = run.dataset.offsets, NextItem(run.dataset, run.experiment.data.noun)
    enough = run.split.test[run.split.test - offsets[user_of(run.split.test, offsets)] >= history]
    if history > run.experiment.encoder.window or not len(enough):
        return None
    target = enough[:1]
    shown: dict[str, Any] = {"history": history, "max_tokens": 1}
    plain = Examples(run.dataset, target, {task: 1.0}, run.tokenizer, **shown)
    spelt = Examples(run.dataset, target, {task: 1.0}, run.tokenizer, text_history=history, **shown)
    question, text = (
        run.tokenizer.prompts([examples.question(task, int(target[0])).prompt])[0]
        for examples in (plain, spelt)
    )
    kept = len(text) - common_end(question, text)
    told = Told(np.array(text), kept, -(-kept // history))
    room = run.decoder_config.max_position_embeddings - TOKENS
    return Prompt(
        question,
        told if len(text) <= room else None,
        lambda users: reader.memory(plain, np.zeros(users, int)),
    )


def common_end(a: list[int], b: list[int]) -> int:
    """How many tokens two texts have in common at their end, at least one."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return max(1, next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b))))


@dataclass(frozen=True)
class Preparation:
    """A run whose prompts and decoder are to be written in a folder."""

    run: str
    data_dir: str
    folder: str
    histories: tuple[int, ...]


def main() -> None:
    work = Preparation(**json.loads(sys.argv[1]))
    run, folder = Run.open(to_path(work.run), Path(work.data_dir)), Path(work.folder)
    subject = of_run(run, work.histories, folder / DECODER)
    prompts = subject.prompts
    write(folder, {history: asked.told for history, asked in prompts.items() if asked.told})
    sizes = [asdict(asked.sizes(history)) for history, asked in prompts.items()]
    print(json.dumps({"shape": subject.shape.described(), "sizes": sizes}))


if __name__ == "__main__":
    main()
