"""Examples to batches on the mesh. What a batch holds is a function of (seed, step) alone.

A `Source` turns the numbers of examples into arrays. `batches` decides their order, cuts the global
batch by process, and prepares ahead of the accelerator. To resume is to start at a later step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from user_llm.config import Retrieval
from user_llm.data.dataset import Dataset, gather
from user_llm.data.excerpts import choose
from user_llm.data.tasks import NextItem, Question, Task, summary_text
from user_llm.data.text import PassageTokenizer, Tokenizer, join, pad
from user_llm.data.timelines import histories, spread, thinned
from user_llm.sharding import batch_sharding, replicated

RESIDENT_BYTES = 2**30  # of a data set that is kept on the device

Rows = Int[np.ndarray, " B"]
Arrays = dict[str, Any]  # of numpy arrays, or of dicts of them
Asking = tuple[Task, int]  # who asks, and about which event


@runtime_checkable
class Source(Protocol):
    """Numbered examples; a row of a batch depends on its example and its seed alone."""

    def __len__(self) -> int: ...

    def batch(self, rows: Rows, seeds: Rows) -> Arrays: ...


@runtime_checkable
class Compact(Source, Protocol):
    """A source whose batches are made whole on the device, from little that is sent there."""

    def unpack(self, mesh: Mesh) -> Callable[[dict], dict]:
        """A compiled function from the arrays of `batch`, placed on the mesh, to all of them."""
        ...


class PackedTimelines:
    """Rows of packed windows (see `timelines.pack`), for pre-training an encoder.

    Sent are the windows' starts and lengths alone where the whole data set fits on the device.
    """

    def __init__(self, dataset: Dataset, starts: np.ndarray, lengths: np.ndarray, size: int):
        self.dataset, self.starts, self.lengths, self.size = dataset, starts, lengths, size
        self.resident = dataset.columns_size <= RESIDENT_BYTES

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: Rows, seeds: Rows) -> Arrays:
        windows = {"starts": self.starts[rows], "lengths": self.lengths[rows]}
        if self.resident:
            return windows
        events, _ = spread(**windows, size=self.size)
        return windows | {"events": self.dataset.gather(events)}

    def unpack(self, mesh: Mesh) -> Callable[[dict], dict]:
        columns = {}
        if self.resident:
            columns = jax.device_put(self.dataset.columns, replicated(mesh))

        @partial(jax.jit, out_shardings=batch_sharding(mesh))
        def whole(columns, batch):
            index, segments = spread(batch["starts"], batch["lengths"], self.size, jnp)
            events = batch["events"] if "events" in batch else gather(columns, index, jnp)
            return {"events": events, "segments": segments}

        return partial(whole, columns)


class Documents:
    """Texts in random order, one after the other, for a language model."""

    def __init__(self, documents: Sequence[Sequence[int]], length: int):
        self.documents, self.length = documents, length

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, rows: Rows, seeds: Rows) -> Arrays:
        joined = [join(self.documents, 1, self.length, np.random.default_rng(s)) for s in seeds]
        return {name: np.concatenate([row[name] for row in joined]) for name in joined[0]}


class Examples:
    """A timeline, a question about its next event, and the answer.

    Args:
      targets: event indices, of each of which some task asks; its history is the events before it.
      tasks: with the share of the examples that each gets.
      history: events that the timeline shows at most.
      max_tokens: of a row at most; fewer where 99% of a sample of the examples need fewer.
      text_history: events of it that the prompt spells out.
      retrieval: which events they are.
      text_summary: whether the prompt begins with a summary of it.
      first_item: the token of item 0, where items are tokens; otherwise next items are spelled.
      drop: of a timeline a random part is left out, up to that share (see `timelines.thinned`).
      passages: what makes tokens of the text that a question is about, where a stream reads it.
      places: of how many newest events the memory has tokens, and how many each, where they stand
        in the prompt behind what it tells of the event; token -1 - m is the memory's m.
    """

    def __init__(
        self,
        dataset: Dataset,
        targets: np.ndarray,
        tasks: dict[Task, float],
        tokenizer: Tokenizer,
        *,
        history: int,
        max_tokens: int,
        text_history: int = 0,
        retrieval: Retrieval = "recency",
        text_summary: bool = False,
        first_item: int | None = None,
        drop: float = 0.0,
        passages: PassageTokenizer | None = None,
        places: tuple[int, int] | None = None,
    ):
        self.dataset, self.targets, self.tokenizer = dataset, targets, tokenizer
        self.tasks, shares = list(tasks), np.array(list(tasks.values()))
        self.shares = np.cumsum(shares / shares.sum())
        self.history, self.limit = history, max_tokens
        self.text_history, self.text_summary = text_history, text_summary
        self.retrieval: Retrieval = retrieval
        self.first_item = first_item
        self.drop, self.passages, self.places = drop, passages, places

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Rows, seeds: Rows) -> Arrays:
        asked = self._asked(rows, seeds)
        shown = self.timelines(rows, seeds if self.drop else None) | self.present(asked)
        return shown | pad(*self._tokens(asked), self.length)

    @cached_property
    def length(self) -> int:
        """Tokens of a row."""
        prompts, answers = self._tokens(self._sample)
        needed = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        return min(self.limit, _most(needed))

    @cached_property
    def _present_length(self) -> int:
        """Tokens of a text that a question is about."""
        assert self.passages is not None, "asked of examples with such texts alone"
        texts = [task.present(target) for task, target in self._sample]
        return min(self.passages.max_tokens, _most([len(ids) for ids in self.passages(texts)]))

    @cached_property
    def _sample(self) -> list[Asking]:
        rows = np.random.default_rng(0).integers(len(self), size=256)
        return self._asked(rows, rows)

    def _asked(self, rows: Rows, seeds: Rows) -> list[Asking]:
        targets = self.targets[rows].tolist()
        drawn = zip(targets, seeds.tolist(), strict=True)
        return [(self._draw(target, seed), target) for target, seed in drawn]

    def _tokens(self, asked: Sequence[Asking]) -> tuple[list[list[int]], list[list[int]]]:
        questions, prompts = self.prompts(asked)
        answers = self.tokenizer.answers([question.answer for question in questions])
        if self.first_item is not None:
            for row, (task, target) in enumerate(asked):
                if isinstance(task, NextItem):
                    answers[row] = [self.first_item + int(self.dataset.item[target])]
        return prompts, answers

    def prompts(self, asked: Sequence[Asking]) -> tuple[list[Question], list[list[int]]]:
        """The questions, and the tokens of their prompts."""
        questions = [self.question(*one) for one in asked]
        if self.places:
            return questions, [self._placed(*one) for one in asked]
        return questions, self.tokenizer.prompts([question.prompt for question in questions])

    def _placed(self, task: Task, target: int) -> list[int]:
        """A prompt that tells of events piece by piece, with the memory's tokens behind each."""
        assert self.places is not None, "asked of prompts with places alone"
        (newest, each), events = self.places, self._history(target)
        told = events[len(events) - min(self.text_history, len(events)) :]
        begin = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        texts = [task.told("", told[nth : nth + 1]) for nth in range(len(told))]
        *pieces, last = self.tokenizer.pieces([*texts, task.ask(events, target).prompt])
        first = newest - len(told)  # the memory's place for the oldest of them
        for nth, piece in enumerate(pieces):
            places = range((first + nth) * each, (first + nth + 1) * each)
            begin += [*piece, *(-1 - place for place in places)]
        return begin + last

    def timelines(self, rows: Rows, seeds: Rows | None = None) -> Arrays:
        """The events and segments of these examples' histories; by the seeds, of parts of them."""
        events = histories(self.targets[rows], self.dataset.offsets, self.history)
        if seeds is not None:
            events = thinned(events, self.drop, seeds)
        return {"events": self.dataset.gather(events), "segments": (events >= 0).astype(np.int32)}

    def present(self, asked: Sequence[Asking]) -> Arrays:
        """The tokens of the texts that questions are about; nothing where no stream reads them."""
        if self.passages is None:
            return {}
        texts = [task.present(target) for task, target in asked]
        return {"present": self.passages.rows(texts, self._present_length)}

    def question(self, task: Task, target: int) -> Question:
        """The task's question about a target event, the text history before it."""
        events = self._history(target)
        question = task.ask(events, target)
        prompt = task.told(question.prompt, self._retrieved(task, target, events))
        summary = summary_text(self.dataset, events, task.noun) if self.text_summary else ""
        return question._replace(prompt=summary + prompt)

    def _history(self, target: int) -> Int[np.ndarray, " H"]:
        (events,) = histories(np.array([target]), self.dataset.offsets, self.history)
        return events[events >= 0]

    def _retrieved(
        self, task: Task, target: int, events: Int[np.ndarray, " H"]
    ) -> Int[np.ndarray, " K"]:
        """Those of a history's events that the prompt spells out."""
        if not self.text_history:
            return events[:0]
        texts, query = [""] * len(events), ""
        if self.retrieval == "bm25":
            texts = [self.dataset.review(e) or task.called(e) for e in events.tolist()]
            query = task.present(target)
        return events[choose(texts, query, self.retrieval, self.text_history, seed=target)]

    def _draw(self, target: int, seed: int) -> Task:
        drawn = np.searchsorted(self.shares, np.random.default_rng(seed).random())
        event, likeliest = np.array([target]), self.tasks[drawn]
        return next((t for t in [likeliest, *self.tasks] if t.fits(event)[0]), likeliest)


def _most(lengths: Sequence[int]) -> int:
    """The length that 99% do not exceed, in whole eights."""
    return 8 * math.ceil(np.quantile(lengths, 0.99) / 8)


class Hinted:
    """Examples that give their item away, each by a random share (see `TimelineStream`)."""

    def __init__(self, examples: Examples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: Rows, seeds: Rows) -> Arrays:
        item = self.examples.dataset.item[self.examples.targets[rows]]
        share = [np.random.default_rng([seed, 1]).random() for seed in seeds]
        hint = {"item": item, "share": np.array(share, np.float32)}
        return self.examples.batch(rows, seeds) | {"hint": hint}


def order(examples: int, batch_size: int, seed: int) -> grain.MapDataset:
    """The examples of every global batch: each once an epoch, in an order of its own."""
    rows = grain.MapDataset.range(examples).seed(seed).shuffle().repeat()
    return rows.batch(batch_size, drop_remainder=True)


def local_batch(
    step: int, *, source: Source, rows: grain.MapDataset, seed: int, own: Int[np.ndarray, " P"]
) -> Arrays:
    """The part of a step's global batch that a process makes: its rows at the places `own`."""
    chosen: Rows = np.asarray(rows[step])
    seeds = np.random.default_rng([seed, step]).integers(2**62, size=len(chosen))
    return source.batch(chosen[own], seeds[own])


def own_places(sharding: NamedSharding, batch_size: int) -> Int[np.ndarray, " P"]:
    """The places in a global batch whose rows lie on this process's devices, in order.

    They need not be neighbours, and processes that share a tensor axis hold the same ones.
    """
    held = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def batches(
    source: Source,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    mesh: Mesh,
    start: int = 0,
    workers: int = 0,
) -> Iterator[dict]:
    """Batches `start` to `steps` of a source on the mesh, their rows over its batch axes.

    Raises:
      ValueError: no examples, or a batch that the mesh cannot split evenly.
    """
    if not len(source):
        raise ValueError("there are no examples to train on; is the data set too small?")
    sharding = batch_sharding(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ValueError(f"batch_size={batch_size} must be a multiple of data x fsdp = {parts}")
    rows, own = order(len(source), batch_size, seed), own_places(sharding, batch_size)
    make = partial(local_batch, source=source, rows=rows, seed=seed, own=own)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    local = grain.MapDataset.range(start, steps).map(make).to_iter_dataset(options)
    if workers:
        flags.FLAGS.mark_as_parsed()  # the workers read grain's, which no absl app has parsed
        local = local.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    whole = source.unpack(mesh) if isinstance(source, Compact) else lambda batch: batch
    for batch in local:
        yield whole(
            jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
        )


def chunks(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of exactly `size`, the last one filled up with its last index; and the real length."""
    for start in range(0, len(indices), size):
        piece = indices[start : start + size]
        yield np.pad(piece, (0, size - len(piece)), mode="edge"), len(piece)
