"""Tasks: what is asked of a user's timeline, in words, and what would be right.

A task sees the history of an example and, for the answer, `horizon` events from its target on.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from user_llm.config import Task as TaskName
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.lamp import KINDS, labels
from user_llm.data.ratings import of_others_before
from user_llm.data.timelines import user_of

Indices = Int[np.ndarray, " T"]
PRACTICE = 10_000  # events that a warm-up asks about at most
SUMMED = 3  # categories and events that a summary names


class Question(NamedTuple):
    """What the language model reads, and what it should say."""

    prompt: str
    answer: str


class Task(ABC):
    """One kind of question.

    Args:
      noun: what an item is called.
      stops: the event at which each user's answers must end, [U]; by default the timelines' ends.
    """

    name: TaskName
    horizon: ClassVar[int] = 1  # events that an answer is about, the target and those after it

    def __init__(
        self, dataset: Dataset, noun: str = "film", stops: Int[np.ndarray, " U"] | None = None
    ):
        self.dataset, self.noun = dataset, noun
        self.stops = dataset.offsets[1:] if stops is None else stops

    @abstractmethod
    def ask(self, history: Indices, target: int) -> Question:
        """The question about the event that follows the history (event indices, oldest first)."""

    def fits(self, targets: Indices) -> Bool[np.ndarray, " T"]:
        """Which of these events have what the task asks for."""
        return targets + self.horizon <= self.stops[user_of(targets, self.dataset.offsets)]

    def candidates(self) -> tuple[str, ...]:
        """All possible answers, where they can be listed."""
        return ()

    def present(self, target: int) -> str:
        """The text that the question about an event is about; empty where there is none."""
        return ""

    def told(self, prompt: str, events: Indices) -> str:
        """A prompt with what these events of the history tell before it."""
        return history_text(self.dataset, events, noun=self.noun) + prompt

    def called(self, event: int) -> str:
        """The title of an event's item; the noun, where it has none."""
        return called(self.dataset, event, self.noun)


class NextItem(Task):
    """The title of the next item."""

    name: TaskName = "next_item"

    def ask(self, history: Indices, target: int) -> Question:
        title = self.dataset.items.titles[self.dataset.item[target]]
        return Question(next_item_prompt(self.noun), title)

    def candidates(self) -> tuple[str, ...]:
        return self.dataset.items.titles[KNOWN:]


def next_item_prompt(noun: str) -> str:
    """How the next item is asked for."""
    return f"The next {noun}:"


class FavoriteCategory(Task):
    """The most frequent category of the history; of equals, the one seen last.

    Source: the labels of arXiv 2402.13598, as arXiv 2608.03063, appendix B.2, words them.
    """

    name: TaskName = "favorite_category"

    def ask(self, history: Indices, target: int) -> Question:
        return Question("The favorite genre:", self.favorite(history))

    def favorite(self, history: Indices) -> str:
        """The label; empty for a history without categories."""
        return self.most_frequent(self.dataset.item[history].tolist())

    def most_frequent(self, items: Sequence[int]) -> str:
        """The same of encoded items."""
        genres = [self.dataset.items.genres[i] for i in items]
        counts = Counter(genre for event in genres for genre in event)
        last = {genre: position for position, event in enumerate(genres) for genre in event}
        return max(counts, key=lambda genre: (counts[genre], last[genre]), default="")

    def candidates(self) -> tuple[str, ...]:
        return tuple(sorted({g for event in self.dataset.items.genres for g in event}))


class FutureFavorite(FavoriteCategory):
    """The most frequent category of the events to come, of which the history is silent."""

    name: TaskName = "future_favorite_category"
    horizon = 10

    def ask(self, history: Indices, target: int) -> Question:
        coming = np.arange(target, target + self.horizon)
        return Question("The favorite genre to come:", self.favorite(coming))


class RatingPrediction(Task):
    """The stars that the user will give the next item, whose title is given."""

    name: TaskName = "rating_prediction"

    def fits(self, targets: Indices) -> Bool[np.ndarray, " T"]:
        ratings = self.dataset.ratings
        rated = np.zeros(len(targets), bool) if ratings is None else ~np.isnan(ratings[targets])
        return rated & super().fits(targets)

    def ask(self, history: Indices, target: int) -> Question:
        return Question(f"The stars for {self.called(target)}:", stars(self.dataset, target))

    def present(self, target: int) -> str:
        return self.called(target)

    def candidates(self) -> tuple[str, ...]:
        ratings = self.dataset.ratings
        return () if ratings is None else tuple(f"{x:g}" for x in np.unique(ratings) if x == x)


class RatingAmongPeers(RatingPrediction):
    """The same where it is told, too, what others gave the item before, on the mean."""

    name: TaskName = "rating_among_peers"

    @cached_property
    def before(self) -> Float[np.ndarray, " events"]:
        return of_others_before(self.dataset)

    def ask(self, history: Indices, target: int) -> Question:
        mean = self.before[target]
        told = "" if np.isnan(mean) else f", which others gave {mean:.1f}"
        return Question(f"The stars for {self.called(target)}{told}:", stars(self.dataset, target))


class ReviewGeneration(Task):
    """The text of the user's review of the next item, whose title and rating are given."""

    name: TaskName = "review_generation"

    def fits(self, targets: Indices) -> Bool[np.ndarray, " T"]:
        written = [bool(self.dataset.review(target)) for target in targets.tolist()]
        return np.array(written, bool) & super().fits(targets)

    def ask(self, history: Indices, target: int) -> Question:
        data = self.dataset
        rating = stars(data, target)
        given = f" ({rating} stars)" if rating else ""
        return Question(f"Review of {self.called(target)}{given}:", data.review(target))

    def present(self, target: int) -> str:
        return self.called(target)

    def told(self, prompt: str, events: Indices) -> str:
        return history_text(self.dataset, events, reviews=True, noun=self.noun) + prompt


class LaMPTask(Task):
    """What a user of LaMP asks at their last event (arXiv 2304.11406).

    Raises:
      ValueError: the data set's users ask nothing.
    """

    def __init__(self, name: str, dataset: Dataset, *rest: Any):
        super().__init__(dataset, *rest)
        self.name, self.kind = cast(TaskName, name), KINDS[name]
        if dataset.asked is None:
            raise ValueError(f'the task {name} is asked of LaMP\'s data; set data.name to "lamp"')
        self.asked = dataset.asked

    def ask(self, history: Indices, target: int) -> Question:
        return Question(self.asked.inputs[target], self.asked.outputs[target])

    def fits(self, targets: Indices) -> Bool[np.ndarray, " T"]:
        known = [bool(self.asked.outputs[target]) for target in targets.tolist()]
        return np.array(known, bool) & super().fits(targets)

    @cached_property
    def _candidates(self) -> tuple[str, ...]:
        return labels(self.name, filter(None, self.asked.outputs))

    def candidates(self) -> tuple[str, ...]:
        return self._candidates

    def present(self, target: int) -> str:
        return self.dataset.review(target)

    def told(self, prompt: str, events: Indices) -> str:
        return self.kind.prompt(prompt, [self.asked.told[int(event)] for event in events])


OF_TIMELINES = (
    NextItem,
    FavoriteCategory,
    FutureFavorite,
    RatingPrediction,
    RatingAmongPeers,
    ReviewGeneration,
)
TASKS: dict[str, Callable[..., Task]] = {
    **{task.name: task for task in OF_TIMELINES},
    **{name: partial(LaMPTask, name) for name in KINDS},
}


def called(dataset: Dataset, event: int, noun: str) -> str:
    """The title of an event's item; the noun, where it has none."""
    return dataset.items.titles[dataset.item[event]] or f"a {noun}"


def stars(dataset: Dataset, event: int) -> str:
    """An event's rating as it is written; empty where there is none."""
    rating = np.nan if dataset.ratings is None else dataset.ratings[event]
    return "" if np.isnan(rating) else f"{rating:g}"


def corpus(dataset: Dataset, events: Indices) -> list[str]:
    """What the catalogue and these events say in words: titles, genres, plots, reviews."""
    items = dataset.items
    told = zip(items.titles[KNOWN:], items.genres[KNOWN:], items.texts[KNOWN:], strict=True)
    texts = [
        f"{title} ({', '.join(genres)}) {text}".strip() for title, genres, text in told if title
    ]
    return texts + [review for event in events.tolist() if (review := dataset.review(event))]


def practice(tasks: Sequence[Task], dataset: Dataset, events: Indices, seed: int) -> list[Question]:
    """Questions and answers without a user, for a language model's warm-up.

    Every listed answer once, and as many questions again about random events, whose answers
    follow popularity.
    """
    rng = np.random.default_rng(seed)
    questions = []
    for task in tasks:
        drawn = rng.permutation(events)[:PRACTICE]
        fitting = drawn[task.fits(drawn)].tolist()
        asked = [task.ask(np.array([event]), event) for event in fitting]
        if asked:
            listed = [Question(asked[0].prompt, answer) for answer in task.candidates()]
            questions += listed + asked[: len(listed) or PRACTICE]
    return questions


def history_text(
    dataset: Dataset, history: Indices, reviews: bool = False, noun: str = "film"
) -> str:
    """The history as a text prompt gives it: titles with genres, stars and, if asked, reviews."""
    lines = []
    for event in history.tolist():
        genres = dataset.items.genres[dataset.item[event]]
        facts = ", ".join(filter(None, (*genres, stars(dataset, event))))
        line = called(dataset, event, noun) + (f" ({facts})" if facts else "")
        review = dataset.review(event) if reviews else ""
        lines.append(f"{line}: {review}" if review else line)
    return "\n".join(lines) + "\n" if lines else ""


def summary_text(dataset: Dataset, history: Indices, noun: str = "film") -> str:
    """The history as a summary gives it: how many events, the main categories, the newest titles.

    The paper's baseline has a language model write it (arXiv 2402.13598).
    """
    if not len(history):
        return ""
    items = dataset.item[history]
    counts = Counter(genre for item in items for genre in dataset.items.genres[item])
    main = ", ".join(f"{genre} {count}" for genre, count in counts.most_common(SUMMED))
    newest = ", ".join(called(dataset, event, noun) for event in history[-SUMMED:].tolist())
    parts = [f"{len(history)} seen", main and f"mostly {main}"]
    ratings = np.empty(0) if dataset.ratings is None else dataset.ratings[history]
    if not np.isnan(ratings).all():
        parts.append(f"{np.nanmean(ratings):.1f} stars on average")
    return "; ".join([*filter(None, parts), f"lately {newest}"]) + "\n"
