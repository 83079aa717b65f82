"""Text in, text out: prompts to answers, all at once or as they are written."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from user_llm.data.text import UNFINISHED, Tokenizer, Unfolding
from user_llm.inference.generate import Generator
from user_llm.inference.sampling import Sampling
from user_llm.models.layers import Memory


class Writer:
    """A generator of tokens with the tokenizer that they belong to."""

    def __init__(self, generator: Generator, tokenizer: Tokenizer):
        """Joins them.

        Raises:
          ValueError: the tokenizer has more tokens than the decoder.
        """
        if len(tokenizer) > (size := generator.config.vocab_size):
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the decoder {size}")
        self.generator, self.tokenizer = generator, tokenizer

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        memory: Memory | None = None,
        prefix: Memory | None = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),
    ) -> list[str]:
        """Each prompt's answer, which ends before the first of the `stop` strings in it.

        Raises:
          ValueError: as `stream`.
        """
        answers = [""] * len(prompts)
        for parts in self.stream(
            prompts,
            max_new_tokens=max_new_tokens,
            stop=stop,
            memory=memory,
            prefix=prefix,
            sampling=sampling,
        ):
            for row, part in parts.items():
                answers[row] += part
        return answers

    def stream(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        memory: Memory | None = None,
        prefix: Memory | None = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),
    ) -> Iterator[dict[int, str]]:
        """What is new of each answer, by its row, as soon as it cannot change any more.

        Held back is the part of a letter, and what may be the start of a stop string. One that is a
        special token, which no text shows, ends an answer as well.

        Raises:
          ValueError: as `Generator.stream`, or a stop string is empty.
        """
        if "" in stop:
            raise ValueError("an empty stop string ends every answer; leave it out")
        steps = self.generator.stream(
            self.tokenizer.prompts(prompts),
            max_new_tokens=max_new_tokens,
            stop={self.tokenizer.eos}.union(*map(self.tokenizer.special, stop)),
            memory=memory,
            prefix=prefix,
            sampling=sampling,
        )
        answers, ended = [Spelling(self.tokenizer, stop) for _ in prompts], None
        with suppress(StopIteration):
            while True:
                found = steps.send(ended)
                parts = {row: answers[row].add(token) for row, token in found.items()}
                ended = {row for row in found if answers[row].ended}
                yield {row: part for row, part in parts.items() if part}
        rests = [answer.rest() for answer in answers]
        yield {row: rest for row, rest in enumerate(rests) if rest}


class Spelling:
    """The text of one answer, as its tokens come.

    Held back is the part of a letter, and what may be the start of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.stop, self._unfolding = stop, Unfolding(tokenizer)
        self.tokens: list[int] = []
        self.ended = False  # by a stop string
        self._text, self._told = "", 0

    def add(self, token: int) -> str:
        """What one more token adds to the text that cannot change any more."""
        self.tokens.append(token)
        text, settled = self._unfolding.add(token)
        ends = [at for word in self.stop if (at := text.find(word)) >= 0]
        self.ended = bool(ends)
        self._text = text[: min(ends)] if ends else text
        sure = min(ends) if ends else _sure(settled, self.stop)
        return self._upto(sure)

    def rest(self) -> str:
        """What was held back, once no more tokens come."""
        return self._upto(len(self._text))

    def _upto(self, sure: int) -> str:
        told, self._told = self._told, max(self._told, sure)
        return self._text[told : self._told]


def _sure(text: str, stop: Sequence[str]) -> int:
    """How many letters of an unfinished text stay, whatever comes next."""
    whole = text.rstrip(UNFINISHED)
    starts = (word[:size] for word in stop for size in range(1, len(word)))
    return len(whole) - max((len(x) for x in starts if whole.endswith(x)), default=0)
