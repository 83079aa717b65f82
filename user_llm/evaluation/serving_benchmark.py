"""What an answer over HTTP costs: by how many ask at once, and after something happened.

The servers are processes of their own, asked by clients who wait for one answer before they ask for
the next. Beside `user-llm serve` stand the same with one row, which serves one by one, and
transformers' own server of the same language model, which is told a user's events as text.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm.auto import tqdm

from user_llm.config import DecoderConfig, EncoderConfig
from user_llm.evaluation import inference_benchmark, load, records, servers, serving_table, sides
from user_llm.evaluation.decode_benchmark import LLAMA_134M
from user_llm.evaluation.inference_subject import ENCODER
from user_llm.evaluation.load import Answer
from user_llm.evaluation.peers.work import cores
from user_llm.evaluation.serving_side import AT_ONCE, Following
from user_llm.evaluation.serving_subject import QUESTION, Event, Subject, events_of, made
from user_llm.files import write_atomically
from user_llm.models import zoo

SIDE = "user_llm.evaluation.serving_side"
DECODERS = {"3m": inference_benchmark.DECODERS["3m"], "134m": LLAMA_134M}
HISTORIES = (10, 30, 100, 200, 1000, 3000, 10_000)
SERVED, ALONE, TEXT = "user_llm", "user_llm, one row", "transformers"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is asked for."""

    clients: tuple[int, ...] = (1, 4, 16, 64)  # at once
    answers: int = 32  # of a round at least
    each: int = 4  # by each client of a round at least
    tokens: int = 32  # of an answer
    history: int = 200  # events of those who ask
    histories: tuple[int, ...] = HISTORIES  # of those to whom something happens
    updates: int = 200  # one event each
    posted: int = 30  # of them over HTTP
    told: int = 3  # answers to a text in a turn
    flags: tuple[str, ...] = ()  # of `user-llm serve`


def benchmark(
    folder: Path,
    *,
    decoders: Sequence[str] = tuple(DECODERS),
    rounds: int = 2,
    sizes: Sizes = Sizes(),
    shapes: Mapping[str, DecoderConfig] = DECODERS,
    encoder: EncoderConfig = ENCODER,
) -> dict[str, Any]:
    """All figures, written to `benchmark.json` in the folder and drawn beside it.

    Exports and compiled programs are kept in the folder, for another time.

    Args:
      decoders: which of the shapes.
      rounds: of which the answers are put together.
      encoder: of users, before the published Perceiver.

    Raises:
      ValueError: a decoder is not known, a server did not come up, or did not answer as asked.
    """
    if unknown := [name for name in decoders if name not in shapes]:
        raise ValueError(f"there is no decoder {unknown[0]}; there are {', '.join(shapes)}")
    started, rows = os.getloadavg(), []
    for name in decoders:
        place = (folder / name).absolute()
        subject = made(place, shapes[name], encoder)
        bench = Bench(place, subject, rounds, sizes)
        rows.append({"decoder": name, "parameters": zoo.count_decoder(shapes[name])} | bench.row())
    result = {
        **records.provenance(),
        "dataset": "made-up users of the world",
        "protocol": f"greedy answers of {sizes.tokens} tokens, streamed, by clients who ask again "
        f"at once, each about a user of {sizes.history} events; random weights; {rounds} rounds",
        "threads": cores(),
        "load_average": [started[0], os.getloadavg()[0]],
        "sizes": dataclasses.asdict(sizes),
        "rows": rows,
    }
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1))
    serving_table.draw(result, folder)
    return result


@dataclasses.dataclass(frozen=True)
class Bench:
    """One decoder's measurements."""

    folder: Path
    subject: Subject
    rounds: int
    sizes: Sizes

    def row(self) -> dict[str, Any]:
        """All figures, part by part; a server is there only as long as it is needed."""
        sizes, served = self.sizes, self.server(SERVED)
        follow = Following(str(self.subject.export), sizes.histories, updates=sizes.updates)
        parts = tqdm(total=3 + self.rounds, leave=False)

        def begin(part: str) -> None:
            parts.update(parts.desc != "")
            parts.set_description(f"{self.folder.name}: {part}")

        followed = []
        with parts:
            for _ in range(self.rounds):
                begin("events, without a server")
                followed.append(sides.run(SIDE, follow))
            begin("answers")
            with served as url:
                with self.server(ALONE) as alone:
                    answers = self.answers({SERVED: url, ALONE: alone})
                begin("events")
                posted = self.posted(url)
                begin("beside text")
                with self.server(TEXT) as peer:
                    text = self.text(url, peer)
        return {"answers": answers, "updates": updates(followed, posted), "text": text}

    @contextmanager
    def server(self, side: str) -> Iterator[str]:
        """The address of a side's server."""
        if side == TEXT:
            with servers.transformers(self.subject.decoder, self.folder / "text") as url:
                yield url
            return
        rows = ("--rows", "1") if side == ALONE else ()
        place = self.folder / ("alone" if rows else "served")
        with servers.ours(self.subject.export, place, *self.sizes.flags, *rows) as url:
            yield url

    def answers(self, urls: Mapping[str, str]) -> list[dict[str, Any]]:
        """How fast users are answered who ask at once, by how many they are; one by one at last."""
        sizes, most = self.sizes, max(self.sizes.clients)
        for url in urls.values():
            for user in range(most):
                self.tell(url, f"u{user}", events_of(self.data, user, sizes.history))
        asked = [(SERVED, clients) for clients in sizes.clients] + [(ALONE, 1)]
        found: dict[tuple[str, int], list[list[list[Answer]]]] = {one: [] for one in asked}
        for side, clients in asked:
            load.load(urls[side], self.bodies(clients), 1)  # memories are ready, and connections
        for nth in range(self.rounds):
            for side, clients in reversed(asked) if nth % 2 else asked:
                each = max(sizes.each, -(-sizes.answers // clients))
                found[side, clients].append(load.load(urls[side], self.bodies(clients), each))
        return [
            {"side": side, "clients": clients, **summary(rounds)}
            for (side, clients), rounds in found.items()
        ]

    def posted(self, url: str) -> dict[int, list[float]]:
        """Seconds of a request that tells of one event more, by how many there were before."""
        found = {}
        for history in self.sizes.histories:
            events = events_of(self.data, history, history + self.sizes.posted + 1)
            self.tell(url, f"h{history}", events[: history + 1])
            with httpx.Client(base_url=url, timeout=load.PATIENCE) as client:
                found[history] = [
                    post(client, f"h{history}", [event]) for event in events[history + 1 :]
                ]
        return found

    def text(self, url: str, peer: str) -> dict[str, Any]:
        """Seconds to first tokens: of a user who is followed, and of one who is told as text.

        Each time another event has just happened; ours also where none has.
        """
        sizes, subject, user = self.sizes, self.subject, "text"
        turns = 2 * self.rounds
        events = events_of(self.data, 0, sizes.history + (turns + 1) * sizes.told)
        self.tell(url, user, events[: sizes.history])
        own = self.bodies(1)[0] | {"user": user}
        found: dict[str, list[float]] = {"kept": [], "fresh": [], "event": [], "text": []}
        seen, lengths = {SERVED: sizes.history, TEXT: sizes.history}, []
        client = httpx.Client(base_url=url, timeout=load.PATIENCE)
        order = [SERVED, TEXT, *sides.turns((SERVED, TEXT), self.rounds, "beside text")]
        for turn, side in enumerate(order):
            for _ in range(sizes.told):
                seen[side] += 1
                if side == SERVED:
                    taken = post(client, user, events[seen[side] - 1 : seen[side]])
                    fresh, kept = (load.load(url, [own], 1)[0][0].first for _ in range(2))
                    told = {"event": taken, "fresh": taken + fresh, "kept": kept}
                else:
                    prompt = subject.told(events[seen[side] - sizes.history : seen[side]])
                    lengths.append(subject.tokens(prompt))
                    body = load.streamed(prompt, str(subject.decoder), sizes.tokens)
                    told = {"text": load.load(peer, [body], 1)[0][0].first}
                for name, seconds in told.items() if turn > 1 else ():  # the first turns warm up
                    found[name].append(seconds)
        client.close()
        tokens = {"question": subject.tokens(QUESTION), "text": float(np.mean(lengths))}
        return {"tokens": tokens} | {name: middles(seconds) for name, seconds in found.items()}

    @property
    def data(self):
        return self.subject.run.dataset

    def bodies(self, clients: int) -> list[load.Body]:
        """What clients ask, each about another user."""
        one = load.streamed(QUESTION, self.subject.export.name, self.sizes.tokens)
        return [one | {"user": f"u{user}"} for user in range(clients)]

    def tell(self, url: str, user: str, events: Sequence[Event]) -> None:
        """Tells a server of a user who is new to it."""
        with httpx.Client(base_url=url, timeout=load.PATIENCE) as client:
            for first in range(0, len(events), AT_ONCE):
                post(client, user, events[first : first + AT_ONCE])


def post(client: httpx.Client, user: str, events: Sequence[Event]) -> float:
    """Seconds until a server knows of events.

    Raises:
      ValueError: it refused them.
    """
    started = time.perf_counter()
    told = client.post(f"/v1/users/{user}/events", json={"events": events})
    seconds = time.perf_counter() - started
    if told.status_code != httpx.codes.OK:
        raise ValueError(f"events were refused with {told.status_code}: {told.text}")
    return seconds


def summary(rounds: Sequence[list[list[Answer]]]) -> dict[str, Any]:
    """Of the answers of some rounds, how long they took and how many there were a second."""
    everything = [answer for answers in rounds for own in answers for answer in own]
    tokens = float(np.mean([load.speed(answers) for answers in rounds]))
    return {
        "answers": len(everything),
        "first": load.percentiles(everything, lambda answer: answer.first),
        "whole": load.percentiles(everything, lambda answer: answer.whole),
        "tokens_per_second": tokens,
        "answers_per_second": tokens / len(everything[0].parts),
    }


def updates(
    followed: Sequence[list[dict[str, Any]]], posted: Mapping[int, list[float]]
) -> list[dict[str, Any]]:
    """What an event more costs, by how many there were: of all rounds together."""
    rows = []
    for runs in zip(*followed, strict=True):
        history = runs[0]["history"]
        names = {"update": "updates", "anew": "anew", "memory": "memories", "append": "appends"}
        parts = {
            name: middles([x for run in runs for x in run[many]]) for name, many in names.items()
        }
        rows.append(
            {
                "history": history,
                "bytes": runs[0]["bytes"],
                "posted": middles(posted[history]),
                **parts,
            }
        )
    return rows


def middles(seconds: Any) -> dict[str, float]:
    """The median of what the same took several times, the mean and the most."""
    found = np.asarray(seconds, float)
    return {"p50": float(np.median(found)), "mean": float(found.mean()), "max": float(found.max())}


metrics, table = serving_table.metrics, serving_table.table
