"""What a language model is fine-tuned on and asked: a timeline, a question about it, an answer."""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int

from user_llm.config import Retrieval
from user_llm.data.dataset import Dataset
from user_llm.data.excerpts import choose
from user_llm.data.pipeline import Arrays, Rows
from user_llm.data.tasks import NextItem, Question, Task, summary_text
from user_llm.data.text import PassageTokenizer, Tokenizer, pad
from user_llm.data.timelines import histories, thinned

Asking = tuple[Task, int]  # who asks, and about which event


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
