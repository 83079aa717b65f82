"""Words to tokens: the tokenizer, and which tokens count in the loss."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decodes from a part of a letter's bytes


class Tokenizer:
    """A Hugging Face tokenizer, with prompts and answers encoded apart.

    An answer's tokens do not depend on the prompt before it, so a catalogue's titles can be
    encoded once.

    Raises:
      ValueError: the tokenizer has no token that ends a sequence.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if self.eos is None:
            raise ValueError("the tokenizer names no end-of-sequence token (eos_token)")
        first = tokenizer.convert_ids_to_tokens(self._encode(["a"])[0])[0]
        self._space = "" if first.startswith("▁") else " "  # some write the space by themselves

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a model folder in Hugging Face layout.

        Raises:
          ValueError: the folder holds none.
        """
        from transformers import AutoTokenizer

        if not Path(folder, "tokenizer.json").is_file():
            raise ValueError(f"{folder} holds no tokenizer.json")
        return cls(AutoTokenizer.from_pretrained(folder))

    @classmethod
    def train(cls, texts: Iterable[str], size: int, folder: Path) -> "Tokenizer":
        """A byte-level BPE of at most `size` tokens learned from the texts, saved to the folder."""
        import tokenizers
        from transformers import PreTrainedTokenizerFast

        special = ["<s>", "</s>"]
        model = tokenizers.ByteLevelBPETokenizer()
        model.train_from_iterator(texts, size, 2, special_tokens=special, show_progress=False)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=model._tokenizer, bos_token=special[0], eos_token=special[1]
        )
        fast.save_pretrained(folder)
        return cls(fast)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def save(self, folder: Path) -> None:
        """Writes it into a model's folder, from which `load` and transformers read it."""
        self._tokenizer.save_pretrained(folder)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of what stands within a prompt."""
        return self._encode(texts)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens with the beginning-of-sequence token before them, if there is one."""
        bos = [] if self.bos is None else [self.bos]
        return [bos + ids for ids in self._encode(texts)]

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a prompt that goes on with a conversation of `role` and `content`.

        By the tokenizer's own template; where it has none, what was said stands line by line.

        Raises:
          ValueError: the template has no place for these roles in this order.
        """
        if not self._tokenizer.chat_template:
            return self.prompts(["\n".join(message["content"] for message in messages)])[0]
        import jinja2

        try:
            said = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's template refuses these messages: {error}") from error
        return self._tokenizer(said, add_special_tokens=False)["input_ids"]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens as they follow a prompt, with the end-of-sequence token behind them."""
        return [[*ids, self.eos] for ids in self._encode([self._space + text for text in texts])]

    def spelled_in_bytes(self, ids: Sequence[int]) -> list[bool]:
        """Which tokens are a byte each, of which several may spell one letter together."""
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        return [bool(name) and name.startswith("<0x") for name in names]

    def special(self, text: str) -> set[int]:
        """The token that is that whole text and never part of another; none for most texts."""
        found = self._tokenizer.get_added_vocab().get(text)
        return set() if found is None else {found}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer."""
        return self.spelt(ids).strip()

    def spelt(self, ids: Sequence[int]) -> str:
        """The same with the spaces around it."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class Unfolding:
    """The text of an answer whose tokens come one by one; what each costs does not grow with them.

    Only the last tokens are decoded: those whose letters may not be whole yet, behind a few that
    stand for all before them, since many a token is spelled otherwise at a beginning.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._sure, self._before, self._last = "", [], []

    def add(self, token: int) -> tuple[str, str]:
        """The text with one more token, and its beginning that no later token changes.

        The first is that of `Tokenizer.decode`.
        """
        self._last.append(token)
        end = len(self._last)
        for byte in reversed(self._tokenizer.spelled_in_bytes(self._last)):
            if not byte:
                break
            end -= 1
        text, settled = self._text(self._last), self._text(self._last[:end])
        if end == len(self._last) and not text.endswith(UNFINISHED) and text != self._sure:
            self._sure, self._before, self._last = text, self._last, []
        return text.strip(), settled.strip()

    def _text(self, last: list[int]) -> str:
        before = self._tokenizer.spelt(self._before)
        return self._sure + self._tokenizer.spelt(self._before + last)[len(before) :]


class PassageTokenizer:
    """A text encoder's tokenizer: whole texts between its own marks, cut at their end.

    Args:
      instruction: what every text begins with, such as BGE's for queries.

    Raises:
      ValueError: the folder holds no tokenizer.
    """

    def __init__(self, folder: str | Path, max_tokens: int, instruction: str = ""):
        from transformers import AutoTokenizer

        if not Path(folder, "tokenizer.json").is_file():
            raise ValueError(f"{folder} holds no tokenizer.json")
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_tokens, self.instruction = max_tokens, instruction

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text."""
        if not texts:
            return []
        how = {"truncation": True, "max_length": self.max_tokens, "split_special_tokens": True}
        told = [self.instruction + text for text in texts]
        return self._tokenizer(told, return_attention_mask=False, **how)["input_ids"]

    def rows(self, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        """Tokens [B, length], cut where they are more, and in the mask where there are any."""
        ids = self(texts)
        tokens = np.zeros((len(texts), length), np.int32)
        for row, own in zip(tokens, ids, strict=True):
            row[: len(own)] = own[:length]
        lengths = np.array([len(own) for own in ids])
        return {"tokens": tokens, "mask": np.arange(length) < lengths[:, None]}


def pad(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int
) -> dict[str, np.ndarray]:
    """Prompt and answer side by side: tokens [B, length] and the answers' weights [B, length].

    What is too long loses the oldest of its prompt, after the first token, and then the end of its
    answer.
    """
    tokens = np.zeros((len(prompts), length), np.int32)
    weights = np.zeros((len(prompts), length), np.float32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        surplus = max(0, len(prompt) + len(answer) - length)
        cut = min(surplus, len(prompt) - 1)
        prompt = [*prompt[:1], *prompt[1 + cut :]]
        ids = [*prompt, *answer][:length]
        tokens[row, : len(ids)] = ids
        weights[row, len(prompt) : len(ids)] = 1
    return {"tokens": tokens, "weights": weights}


def join(
    documents: Sequence[Sequence[int]], rows: int, length: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Rows filled with random documents, one after the other: tokens and weights [rows, length]."""
    tokens: Int[np.ndarray, "B T"] = np.zeros((rows, length), np.int32)
    weights: Float[np.ndarray, "B T"] = np.ones((rows, length), np.float32)
    for row in tokens:
        filled = 0
        while filled < length:
            ids = documents[int(rng.integers(len(documents)))][: length - filled]
            row[filled : filled + len(ids)] = ids
            filled += len(ids)
    return {"tokens": tokens, "weights": weights}
