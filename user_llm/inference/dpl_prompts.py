"""What DPL asks a language model, in words: the differences, their summary, the review."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from user_llm.config.base import Config
from user_llm.data.dataset import Dataset
from user_llm.data.tasks import stars

SUMMARY, REVIEW = "[Summary]:", "[Review]:"

DIFFERENCES = """\
Several people reviewed the same item. Find out what is particular to one of them, the author.

The item:
{item}

The author's review:
{review}

Reviews by others:
{others}

Compare the author's review with those of the others along three lines:
- writing: which words are chosen, and how sentences are built;
- emotional: how positive, negative or neutral the tone is;
- semantic: how much is told, how densely, and how well one thing follows from another.
Say of each line, in one or two sentences, how the author differs from the others. Answer with a \
JSON object that has the strings "writing", "emotional" and "semantic", and with nothing else.
"""
PROFILE = """\
This is what one author wrote, from the least to the most relevant, and how the author's reviews \
differ from those that others wrote of the same items.

Reviews by the author:
{past}

How the author differs from others:
{differences}

Sum up how this author writes, and what sets the author apart from other people, so that somebody \
else could write a new review just as the author would. Write the summary behind the tag {tag}
"""
NEW_REVIEW = """\
Write the review that an author is going to write of a new item.

Reviews that the author wrote before:
{past}

What is known of how the author writes:
{summary}

The new item:
{item}
{given}
Write the review in the author's own way, as long as the author's reviews are, and nothing else \
besides. Begin it with the tag {tag}
"""
NONE = "(none)"


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


Said = Annotated[str, AfterValidator(_said)]  # no constraint of the schema: not all endpoints know


class Differences(Config):
    """How an author's review differs from those of others."""

    writing: Said
    emotional: Said
    semantic: Said

    def __str__(self) -> str:
        return "\n".join(f"{name}: {told}" for name, told in self)


@dataclass(frozen=True)
class Prompts:
    """The prompts about events of a data set.

    Args:
      titled: the first line of a review is its title, if there are more.
      characters: of a description or a review that are quoted, at most.
    """

    data: Dataset
    titled: bool = False
    characters: int = 2000

    def title(self, event: int) -> str:
        """What the user called a review; empty where it has no title."""
        title, _, text = self.data.review(event).partition("\n")
        return title.strip() if self.titled and text.strip() else ""

    def text(self, event: int) -> str:
        """A review without its title."""
        review = self.data.review(event)
        return review.partition("\n")[2].strip() if self.title(event) else review

    def about(self, event: int) -> str:
        """What an event is about, by which like ones are found: no word of the review itself."""
        items, item = self.data.items, self.data.item[event]
        parts = (self.title(event), items.titles[item], items.texts[item])
        return " ".join(filter(None, parts))

    def differences(self, event: int, others: Sequence[int]) -> str:
        """Asks how a review differs from others of the same item."""
        told = "\n\n".join(f"{n}. {self._review(other)}" for n, other in enumerate(others, 1))
        return DIFFERENCES.format(item=self._item(event), review=self._review(event), others=told)

    def profile(self, past: Sequence[int], differences: Mapping[int, Differences]) -> str:
        """Asks for a summary of how an author writes."""
        told = [f"Of {self._name(event)}:\n{one}" for event, one in differences.items()]
        return PROFILE.format(
            past=self._past(past), differences="\n\n".join(told) or NONE, tag=SUMMARY
        )

    def review(self, event: int, past: Sequence[int], summary: str) -> str:
        """Asks for the review of an event, of which only the text is not told."""
        return NEW_REVIEW.format(
            past=self._past(past),
            summary=summary,
            item=self._item(event),
            given=self._given(event),
            tag=REVIEW,
        )

    def _past(self, events: Sequence[int]) -> str:
        return "\n\n".join(f"{self._item(event)}\n{self._review(event)}" for event in events)

    def _item(self, event: int) -> str:
        described = self.data.items.texts[self.data.item[event]]
        return self._name(event) + (f"\nDescription: {self._cut(described)}" if described else "")

    def _name(self, event: int) -> str:
        return self.data.items.titles[self.data.item[event]] or "an item without a name"

    def _review(self, event: int) -> str:
        return f"{self._given(event)}{self._cut(self.text(event))}"

    def _given(self, event: int) -> str:
        """The rating and the title of a review, a line each."""
        rating, title = stars(self.data, event), self.title(event)
        told = (rating and f"Rating: {rating}\n", title and f"Title: {title}\n")
        return "".join(filter(None, told))

    def _cut(self, text: str) -> str:
        return text if len(text) <= self.characters else text[: self.characters] + "…"
