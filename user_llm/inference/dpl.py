"""DPL: a language model writes a user's next review, told what sets the user apart from others.

Source: arXiv 2503.02450, section 3. Nothing is trained. Of each past item that others reviewed
before the user did, the model says how the user's review differs from those of representative
others; it sums the differences up; and with the summary and the past reviews most like the present
it writes. What is read of anybody is from strictly before what it is read for.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import PositiveInt

from user_llm.config.base import Config
from user_llm.data.dataset import Dataset
from user_llm.data.excerpts import choose
from user_llm.data.peers import representatives
from user_llm.data.reviewers import Reviewers
from user_llm.inference.dpl_prompts import REVIEW, SUMMARY, Differences, Prompts
from user_llm.inference.endpoint import Chat, GivenUp

Vectorizer = Callable[[Sequence[str]], Float[np.ndarray, "N D"]]
LATER = "<what the model answers>"  # stands in prompts for what has not been asked


class DPLConfig(Config):
    """What of the past is told and compared; the numbers are the paper's.

    So is the title of a review, which is given there: set `titled` where the data set has titles.
    """

    past: PositiveInt = 8  # reviews that are told, and reviews that are compared with others'
    others: PositiveInt = 4  # who reviewed an item before, at least, or it is not compared
    representatives: PositiveInt = 4  # of those others, at most
    characters: PositiveInt = 2000  # of a description or a review that a prompt quotes, at most
    titled: bool = False  # the first line of a review of several is its title, and is given


class Comparison(NamedTuple):
    """A user's review and those by representative others of the same item."""

    event: int
    others: tuple[int, ...]


class Target(NamedTuple):
    """A review to be written, and what is known for it."""

    event: int
    past: tuple[int, ...]  # the most like it last
    compared: tuple[Comparison, ...]

    @property
    def calls(self) -> int:
        """The questions that it takes, if every answer is as asked."""
        return len(self.compared) + 2


@dataclass(frozen=True)
class Written:
    """A review that was written, and what led to it."""

    target: Target
    differences: dict[int, Differences]  # by the past event
    summary: str
    review: str


def held_out(data: Dataset, users: int = 0, seed: int = 0) -> list[int]:
    """The last review of each user who has an earlier one; of so many random users, if not 0.

    Raises:
      ValueError: there is none.
    """
    last = (_last(data, *ends) for ends in pairwise(data.offsets.tolist()))
    found = np.array([event for event in last if event is not None], np.int64)
    if not len(found):
        raise ValueError("no user of the data set has a review and one before it")
    if users:
        found = np.sort(np.random.default_rng(seed).permutation(found)[:users])
    return found.tolist()


def _last(data: Dataset, first: int, end: int) -> int | None:
    written = [event for event in range(first, end) if data.review(event)]
    return written[-1] if written and data.times[written[0]] < data.times[written[-1]] else None


def plan(
    data: Dataset, events: Sequence[int], vectorize: Vectorizer, config: DPLConfig, seed: int = 42
) -> list[Target]:
    """What is told and compared for each of these reviews; `vectorize` embeds reviews.

    Raises:
      ValueError: a package that this takes is not installed.
    """
    prompts, reviewers = Prompts(data, config.titled, config.characters), Reviewers(data)

    def likest(event: int, some: list[int]) -> list[int]:
        texts = [prompts.about(one) for one in some]
        return [some[i] for i in choose(texts, prompts.about(event), "bm25", config.past)]

    chosen: list[tuple[int, list[int], list[int]]] = []
    for event in events:
        first = int(data.offsets[reviewers.user[event]])
        before = [e for e in range(first, event) if data.times[e] < data.times[event]]
        past = [e for e in before if data.review(e)]
        shared = [e for e in past if reviewers.count(e) >= config.others]
        chosen.append((event, likest(event, past), likest(event, shared)))
    compared = sorted({e for _, _, shared in chosen for e in shared})
    others = {event: reviewers.before(event) for event in compared}
    read = sorted({*compared, *(other for some in others.values() for other in some)})
    vectors = dict(zip(read, vectorize([data.review(e) for e in read]), strict=True))
    by_event: dict[int, Comparison] = {}
    for event, some in others.items():
        rows = representatives(
            vectors[event], np.stack([vectors[e] for e in some]), config.representatives, seed
        )
        if len(rows):  # none, if all wrote the same
            by_event[event] = Comparison(event, tuple(some[row] for row in rows.tolist()))
    return [
        Target(event, tuple(past), tuple(by_event[e] for e in shared if e in by_event))
        for event, past, shared in chosen
    ]


async def write(target: Target, prompts: Prompts, chat: Chat) -> Written:
    """The review of a target; a difference that the model cannot say as asked is left out.

    Raises:
      Failed: the endpoint does not answer, or never with a text.
    """

    async def difference(one: Comparison) -> Differences:
        return await chat.fill(prompts.differences(one.event, one.others), Differences)

    told = await asyncio.gather(*map(difference, target.compared), return_exceptions=True)
    found: dict[int, Differences] = {}
    for one, answer in zip(target.compared, told, strict=True):
        if isinstance(answer, Differences):
            found[one.event] = answer
        elif not isinstance(answer, GivenUp):
            raise answer
    summary = await chat.say(prompts.profile(target.past, found), SUMMARY)
    review = await chat.say(prompts.review(target.event, target.past, summary), REVIEW)
    return Written(target, found, summary, review)


def script(target: Target, prompts: Prompts) -> list[str]:
    """All that is asked for a target, in order, with `LATER` where answers would stand."""
    unknown = {
        one.event: Differences.model_validate(dict.fromkeys(Differences.model_fields, LATER))
        for one in target.compared
    }
    return [
        *(prompts.differences(one.event, one.others) for one in target.compared),
        prompts.profile(target.past, unknown),
        prompts.review(target.event, target.past, LATER),
    ]
