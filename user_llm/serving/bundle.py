"""Answers by a system that was exported as programs: jax and numpy are all that it needs.

This file lies as `run.py` in the folder of such an export, beside

  export.json        which files belong together, and what the programs read
  encode.bin         (params, events, segments) -> memory; absent where no user is read
  prefill.bin        (params, tokens, lengths, slots, memory) -> logits, state
  step.bin           (params, state, tokens) -> logits, state
  params.npz         the parameters of `encode`, and of the other two: those of `decode`
  selftest.npz       two users and their prompts, and what was found where they were exported
  data/, tokenizer/  what encoded events and tokens mean, for whoever makes them
  flatbuffers.zip    with which jax reads programs, for where it is not installed

The programs run on CPUs, NVIDIA's GPUs and TPUs, for any users b, events n, tokens t and slots s.
`python run.py` checks the folder and answers the prompts of its self-test.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INDEX, PARAMS, TEST, READER = "export.json", "params.npz", "selftest.npz", "flatbuffers.zip"
SAME = 1e-4  # of the greatest value, what may differ from one CPU to another
ROUGH = 2e-2  # the same of bfloat16, and of chips that multiply float32 in fewer bits
Memory = dict[str, Any]  # `tokens` [b, M, D] and their `mask` [b, M]; empty where no user is read
Test = dict[str, np.ndarray]


class Bundle:
    """Programs with their parameters.

    Args:
      told: of the index, what the programs read.
      params: of `encode` and of `decode`, by name.
      programs: `encode`, `prefill` and `step`, to be jitted.
    """

    def __init__(
        self,
        told: Mapping[str, Any],
        params: Mapping[str, dict[str, Any]],
        programs: Mapping[str, Callable[..., Any]],
    ):
        self.told, self.params = told, params
        self.differing: dict[str, float] = {}  # what the self-test found, from what was exported
        self._encode = jax.jit(programs["encode"]) if "encode" in programs else None
        self._prefill = jax.jit(programs["prefill"])
        self._step = jax.jit(programs["step"], donate_argnums=1)

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """The programs of a folder.

        Raises:
          ValueError: files are missing, damaged or of another export, all of which are named; or
            the programs do not find here what they found where they were exported.
        """
        told = json.loads((folder / INDEX).read_text())
        _check_files(folder, told["files"])
        if find_spec("flatbuffers") is None:
            sys.path.append(str(folder / READER))
        from jax import export

        params: dict[str, dict[str, Any]] = {"encode": {}, "decode": {}}
        with np.load(folder / PARAMS) as file:
            for name, kind in told["params"].items():  # numpy has no name for bfloat16
                part, _, own = name.partition(".")
                params[part][own] = jnp.asarray(file[name].view(kind))
        read = {name: (folder / f"{name}.bin").read_bytes() for name in told["programs"]}
        programs = {name: export.deserialize(bytearray(x)).call for name, x in read.items()}
        made = cls(told, params, programs)
        made.differing = made.check(read_test(folder), folder)
        return made

    def encode(self, events: dict[str, Any], segments: Any) -> Memory:
        """What the decoder reads of users whose events are encoded [b, n], or [b, n, K].

        `segments` [b, n] is 1 where there is an event and 0 behind the last one.

        Raises:
          ValueError: there are more events than the encoder reads.
        """
        if (count := segments.shape[1]) > self.told["events"]:
            raise ValueError(f"of {count} events the newest {self.told['events']} are to be given")
        return self._encode(self.params["encode"], events, segments) if self._encode else {}

    def prefill(
        self, tokens: Any, lengths: Any, memory: Memory, slots: int
    ) -> tuple[jax.Array, dict]:
        """Logits [b, V] after prompts [b, t] of such lengths, and the state behind them.

        The state has so many `slots`: for the prompt, the answer and, where they stand before the
        prompt, the memory's tokens.

        Raises:
          ValueError: the prompts alone take more.
        """
        if slots < (needed := self.told["before"] + tokens.shape[1]):
            raise ValueError(f"{slots} slots are too few: prompts and memory take {needed}")
        there = jnp.arange(slots, dtype=jnp.int32)
        return self._prefill(self.params["decode"], tokens, lengths, there, memory)

    def step(self, state: dict, tokens: Any) -> tuple[jax.Array, dict]:
        """Logits [b, V] after one more token of each, and the state with it; `state` is used up.

        No more tokens may come than there are slots for.
        """
        return self._step(self.params["decode"], state, tokens)

    def answer(
        self, prompts: Sequence[Sequence[int]], memory: Memory, new_tokens: int
    ) -> list[list[int]]:
        """The likeliest token after each prompt, the one after that, and so on to its end."""
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        tokens = np.zeros((len(prompts), lengths.max()), np.int32)  # padded on the right
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        slots = self.told["before"] + tokens.shape[1] + new_tokens
        logits, state = self.prefill(tokens, lengths, memory, slots)
        found = [logits.argmax(-1).astype(jnp.int32)]
        while len(found) < new_tokens:
            logits, state = self.step(state, found[-1])
            found.append(logits.argmax(-1).astype(jnp.int32))
        rows, stop = np.stack(found, axis=1).tolist(), self.told["stop"]
        return [row[: row.index(stop)] if stop in row else row for row in rows]

    def found(self, test: Test) -> Test:
        """What the programs make of a self-test's users and prompts."""
        memory = self.encode(events_of(test), test["segments"])
        slots = self.told["before"] + test["tokens"].shape[1] + 1
        logits, state = self.prefill(test["tokens"], test["lengths"], memory, slots)
        then, _ = self.step(state, test["next"])
        found = {"logits": logits, "next_logits": then}
        found |= {"memory": memory["tokens"]} if memory else {}
        return {name: np.asarray(x.astype(jnp.float32)) for name, x in found.items()}

    def check(self, test: Test, folder: Path) -> dict[str, float]:
        """By how much what is found differs from what was, by name.

        Raises:
          ValueError: it differs by more than one machine from another.
        """
        differing, fine = {}, jax.default_backend() == "cpu" and self.told["dtype"] == "float32"
        for name, x in self.found(test).items():
            wanted = test[f"found.{name}"]
            differing[name] = float(np.abs(x - wanted).max())
            if not differing[name] <= (SAME if fine else ROUGH) * np.abs(wanted).max():
                raise ValueError(
                    f"{folder}: the {name} of its self-test differ by {differing[name]:.2g} from "
                    "what was exported; export the run again"
                )
        return differing


def read_test(folder: Path) -> Test:
    with np.load(folder / TEST) as file:
        return dict(file)


def events_of(test: Test) -> Test:
    """The encoded events of a self-test's users."""
    return {n.removeprefix("events."): x for n, x in test.items() if n.startswith("events.")}


def _check_files(folder: Path, known: Mapping[str, str]) -> None:
    problems = []
    for name, wanted in known.items():
        if not (path := folder / name).is_file():
            problems.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            problems.append(f"{name} is damaged, or of another export")
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; export the run again")


def main(folder: Path) -> None:
    bundle, test = Bundle.load(folder), read_test(folder)
    for name, difference in bundle.differing.items():
        print(f"{name}: differs by {difference} at most from what was exported")
    memory = bundle.encode(events_of(test), test["segments"])
    lengths = test["lengths"].tolist()
    prompts = [row[:n].tolist() for row, n in zip(test["tokens"], lengths, strict=True)]
    for prompt, answer in zip(prompts, bundle.answer(prompts, memory, 8), strict=True):
        print(f"{prompt} -> {answer}")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
