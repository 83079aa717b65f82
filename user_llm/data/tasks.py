"""Tasks: what is asked of a user's timeline, in words, and what would be right.

A task sees the history and the target event of an example, and no event after them.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from user_llm.config import Task as TaskName
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN

Indices = Int[np.ndarray, " T"]
PRACTICE = 10_000  # events that a warm-up asks about at most


class Question(NamedTuple):
    """What the language model reads, and what it should say."""

    prompt: str
    answer: str


class Task(ABC):
    """One kind of question. `noun` is what an item is called."""

    name: TaskName

    def __init__(self, dataset: Dataset, noun: str = "film"):
        self.dataset, self.noun = dataset, noun

    @abstractmethod
    def ask(self, history: Indices, target: int) -> Question:
        """The question about the event that follows the history (event indices, oldest first)."""

    def fits(self, target: int) -> bool:
        """Whether the target event has what the task asks for."""
        return True

    def candidates(self) -> tuple[str, ...]:
        """All possible answers, where they can be listed."""
        return ()


class NextItem(Task):
    """The title of the next item."""

    name: TaskName = "next_item"

    def ask(self, history: Indices, target: int) -> Question:
        title = self.dataset.items.titles[self.dataset.item[target]]
        return Question(f"The next {self.noun}:", title)

    def candidates(self) -> tuple[str, ...]:
        return self.dataset.items.titles[KNOWN:]


class FavoriteCategory(Task):
    """The most frequent category of the history; of equals, the one seen last.

    Source: the labels of arXiv 2402.13598, as arXiv 2608.03063, appendix B.2, words them.
    """

    name: TaskName = "favorite_category"

    def ask(self, history: Indices, target: int) -> Question:
        return Question("The favorite genre:", self.favorite(history))

    def favorite(self, history: Indices) -> str:
        """The label; empty for a history without categories."""
        genres = [self.dataset.items.genres[i] for i in self.dataset.item[history]]
        counts = Counter(genre for event in genres for genre in event)
        last = {genre: position for position, event in enumerate(genres) for genre in event}
        return max(counts, key=lambda genre: (counts[genre], last[genre]), default="")

    def candidates(self) -> tuple[str, ...]:
        return tuple(sorted({g for event in self.dataset.items.genres for g in event}))


class ReviewGeneration(Task):
    """The text of the user's review of the next item, whose title and rating are given."""

    name: TaskName = "review_generation"

    def fits(self, target: int) -> bool:
        return bool(self.dataset.review(target))

    def ask(self, history: Indices, target: int) -> Question:
        data = self.dataset
        stars = "" if data.ratings is None else f" ({data.ratings[target]:g} stars)"
        title = data.items.titles[data.item[target]]
        return Question(f"Review of {title}{stars}:", data.review(target))


TASKS: dict[str, type[Task]] = {
    task.name: task for task in (NextItem, FavoriteCategory, ReviewGeneration)
}


def corpus(dataset: Dataset, events: Indices) -> list[str]:
    """What the catalogue and these events say in words: titles, genres, plots, reviews."""
    items = dataset.items
    named = zip(items.titles[KNOWN:], items.genres[KNOWN:], items.texts[KNOWN:], strict=True)
    texts = [f"{title} ({', '.join(genres)}) {text}".strip() for title, genres, text in named]
    return texts + [review for event in events.tolist() if (review := dataset.review(event))]


def practice(tasks: Sequence[Task], dataset: Dataset, events: Indices, seed: int) -> list[Question]:
    """Questions and answers without a user, for a language model's warm-up.

    Every listed answer once, and as many questions again about random events, whose answers
    follow popularity.
    """
    rng = np.random.default_rng(seed)
    questions = []
    for task in tasks:
        drawn = rng.permutation(events)[:PRACTICE].tolist()
        fitting = [event for event in drawn if task.fits(event)]
        asked = [task.ask(np.array([event]), event) for event in fitting]
        if asked:
            listed = [Question(asked[0].prompt, answer) for answer in task.candidates()]
            questions += listed + asked[: len(listed) or PRACTICE]
    return questions


def history_text(dataset: Dataset, history: Indices, reviews: bool = False) -> str:
    """The history as a text prompt gives it: titles with genres, stars and, if asked, reviews."""
    lines = []
    for event in history.tolist():
        item = dataset.item[event]
        facts = list(dataset.items.genres[item])
        if dataset.ratings is not None:
            facts.append(f"{dataset.ratings[event]:g}")
        line = f"{dataset.items.titles[item]} ({', '.join(facts)})"
        review = dataset.review(event) if reviews else ""
        lines.append(f"{line}: {review}" if review else line)
    return "\n".join(lines) + "\n" if lines else ""
