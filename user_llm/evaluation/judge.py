"""A language model as a judge of how much a review that was written is like the real one.

As in arXiv 2503.02450: points from 0 to 10, divided by 10; the rubric is our own.
"""

from typing import Annotated

from pydantic import AfterValidator

from user_llm.config.base import Config
from user_llm.inference.endpoint import Chat

POINTS = 10
RUBRIC = """\
A program tried to write the review that a certain person wrote of an item. Judge how near it came.

The real review:
{real}

The program's review:
{written}

Give points from 0 to 10 for how much the program's review could pass for the real one, in what it \
says, in its tone and in its style:
0: nothing in common;
2: the same item, but hardly a thought or a trait of style in common;
4: some points in common, told with another emphasis, tone or style;
6: the main points and the general attitude are there, others are missing or made up;
8: nearly all points, with much the same tone and style;
10: the same points, tone and style, as if by the same hand.
Points between these are allowed. Answer with a JSON object that has the whole number "score", and \
with nothing else.
"""


def _within(points: int) -> int:
    if not 0 <= points <= POINTS:
        raise ValueError(f"is not between 0 and {POINTS}")
    return points


class Score(Config):
    """A judge's points."""

    score: Annotated[int, AfterValidator(_within)]


async def judge(real: str, written: str, chat: Chat) -> float:
    """How like the real review one is, between 0 and 1.

    Raises:
      Failed: the judge does not answer, or never with points.
    """
    answer = await chat.fill(RUBRIC.format(real=real, written=written), Score)
    return answer.score / POINTS
