"""Our side of the inference benchmark: a User-LLM, and its decoder given the history as text.

Prompts are as long as they are: to pad them to a bucket, as a server would, costs a long text most.
"""

from collections.abc import Generator as Steps
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from user_llm.evaluation.answer_costs import Shape
from user_llm.evaluation.inference_subject import Subject, made, of_run
from user_llm.evaluation.peers.answering import DECODER, Answering, Start, asked, measure, read
from user_llm.files import to_path
from user_llm.inference.generate import Generator, State, grow
from user_llm.runs import Run


def main() -> None:
    work = asked()
    measure(partial(starts, subject(work), tokens=work.tokens), work)


def subject(work: Answering) -> Subject:
    """What the work asks about."""
    histories = sorted({history for history, _, _ in work.asked})
    if work.run:
        return of_run(Run.open(to_path(work.run), Path(work.data_dir)), histories)
    folder = Path(work.folder)
    told = {history: read(folder, history) for history in histories}
    return made(Shape.of(work.shape), folder / DECODER, told)


def starts(
    subject: Subject, history: int, batch: int, systems: Sequence[str], *, tokens: int
) -> dict[str, Start]:
    """The calls of the systems that so many users like one of that history ask at once."""
    prompt, reader, teller = subject.prompts[history], subject.reader, subject.teller

    def repeated(ids: Sequence[int] | np.ndarray) -> Int[Array, "B T"]:
        return jnp.tile(jnp.asarray(ids, jnp.int32), (batch, 1))

    question = repeated(prompt.question)

    def cold() -> Start:
        return lambda: answer(reader, question, tokens, **prompt.memory(batch))

    def warm() -> Start:
        known = prompt.memory(batch)
        return lambda: answer(reader, question, tokens, **known)

    def keys_kept() -> Start:
        lengths = jnp.full(batch, question.shape[1], jnp.int32)
        _, state = reader.prefill(question, lengths, **prompt.memory(batch))
        return going_on(reader, state, int(state.lengths[0]) - question.shape[1], question, tokens)

    def new_event() -> Iterator[list[int]]:
        jax.block_until_ready(prompt.memory(batch))
        yield []

    makers = {
        "user_llm": cold,
        "user_llm, memory kept": warm,
        "user_llm, keys kept": keys_kept,
        "user_llm, new event": lambda: new_event,
        "no_context": lambda: lambda: answer(teller, question, tokens),
    }
    if prompt.told is not None:
        told, kept, event = prompt.told
        whole = repeated(told)

        def prefix_kept(rest: Int[Array, "B T"], tokens: int) -> Start:
            _, state = teller.prefill(whole[:1, :kept], jnp.array([kept], jnp.int32))
            state = jax.tree.map(lambda x: jnp.repeat(x, batch, axis=0), state)
            return going_on(teller, state, kept, rest, tokens)

        makers |= {
            "text_prompt": lambda: lambda: answer(teller, whole, tokens),
            "text_prompt, prefix kept": lambda: prefix_kept(whole[:, kept:], tokens),
            "text_prompt, new event": lambda: prefix_kept(whole[:, :event], 1),
        }
    return {system: makers[system]() for system in systems}


def answer(
    generator: Generator, prompts: Int[Array, "B T"], tokens: int, **context: Any
) -> Iterator[list[int]]:
    """The next tokens of prompts without padding, step by step."""
    lengths = jnp.full(len(prompts), prompts.shape[1], jnp.int32)
    yield from further(generator, *generator.prefill(prompts, lengths, **context), tokens)


def going_on(
    generator: Generator, state: State, kept: int, rest: Int[Array, "B T"], tokens: int
) -> Start:
    """Answers that begin from the first `kept` positions of a state."""
    batch = len(rest)
    state = grow(state, kept + rest.shape[1] + tokens)

    def start() -> Iterator[list[int]]:
        nonlocal state
        begun = state._replace(lengths=jnp.full(batch, kept, jnp.int32))
        lengths = jnp.full(batch, rest.shape[1], jnp.int32)
        state = yield from further(generator, *generator.extend(begun, rest, lengths), tokens)

    return start


def further(
    generator: Generator, logits: Float[Array, "B V"], state: State, tokens: int
) -> Steps[list[int], None, State]:
    """The likeliest tokens, step by step; returns the state at the end."""
    chosen = likeliest(logits)
    yield chosen.tolist()
    length = int(state.lengths[0]) + tokens - 1
    if length > state.slots:
        state = grow(state, length)
    for _ in range(tokens - 1):
        logits, state = generator.step(state, chosen)
        chosen = likeliest(logits)
        yield chosen.tolist()
    return state


@jax.jit
def likeliest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    return logits.argmax(-1).astype(jnp.int32)


if __name__ == "__main__":
    main()
