"""How a system of the zoo is trained on a command line, and loaded in Python."""

from collections.abc import Iterator, Sequence
from statistics import mean

from user_llm.config import Experiment
from user_llm.evaluation.records import Record
from user_llm.evaluation.report import duration
from user_llm.sweep import default_folder, place
from user_llm.zoo.index import Kind, System, is_compiled, kind, sources

LONG = 90  # characters, from which on a command is wrapped
WRAP = " \\\n    "
SNIPPETS: dict[Kind, str] = {
    "encoder": """\
from pathlib import Path

import numpy as np

import user_llm

recommender = user_llm.recommender(user_llm.Run.open(Path("{folder}")))
data, users = recommender.dataset, np.arange(3)  # the first three of its data set
print(recommender.best(data, users, 10))  # [[Recommendation(item, title, score), ...], ...]
print(recommender.states(data, users).shape)  # (3, {width})
new = [{{"item": item, "timestamp": 1_700_000_000}} for item in data.items.ids[-3:]]
print(recommender.recommend([new], 10))  # or of anyone, by raw events
""",
    "system": """\
from pathlib import Path

import user_llm

run = user_llm.Run.open(Path("{folder}"))
system = user_llm.System(run, "user_llm", user_llm.finetune(run))  # trained already: loads
task = user_llm.TASKS["{task}"](run.dataset, "{noun}")
print(system.answer(task, run.split.test[:3]).texts)  # about the events that come next
""",
    "language_model": """\
from pathlib import Path

import user_llm
from user_llm import stages

run = user_llm.Run.open(Path("{folder}"))
model = user_llm.System(run, "user_llm", stages.warmup(run))  # trained already: loads
prompts = run.tokenizer.prompts(["The next {noun}:"])
(written,) = model.generator.generate(prompts, max_new_tokens=16, stop={{run.tokenizer.eos}})
print(run.tokenizer.decode(written))
""",
}
UNTRAINED = """\
from user_llm.cli import load_config

experiment = load_config("configs/{config}")  # never trained: there is nothing to load
print(experiment.model_dump_json(indent=2, exclude_defaults=True))
"""


def commands(system: System) -> str:
    """What makes the recorded runs, those first that it begins with, and how long each takes."""
    lines = []
    if folders := needed(system.experiment):
        lines.append(f"export USER_LLM_DATA=FOLDER  # that holds {', '.join(folders)}")
    for runs in (*system.before, [one for some in system.recorded.values() for one in some]):
        lines += told(runs)
    return "\n".join(lines)


def told(runs: Sequence[Record]) -> Iterator[str]:
    """The commands of records, in the order of their seeds."""
    for command in dict.fromkeys(one.command for one in runs):
        some = [one for one in runs if one.command == command]
        took = "compiled" if is_compiled(some) else per_seed(some)
        shown = command.replace(" --", WRAP + "--") if len(command) > LONG else command
        yield f"{shown}  # {took}"


def per_seed(some: Sequence[Record]) -> str:
    """How long the runs of records took, each seed once."""
    by_seed = {one.seed: one.seconds for one in some}
    return duration(mean(by_seed.values())) + (" a seed" if len(by_seed) > 1 else "")


def needed(experiment: Experiment) -> list[str]:
    """The folders below $USER_LLM_DATA that an experiment reads."""
    model = experiment.language_model
    found = [*sources(experiment.data), model.weights]
    found += [source for corpus in model.corpora for source in sources(corpus)]
    return [path for path in dict.fromkeys(found) if path]


def python(system: System) -> str:
    """A program that loads the system from the folder of its first run."""
    if not system.trained:
        return UNTRAINED.format(config=system.entry.config)
    return loading(system.experiment, folder(system))


def loading(experiment: Experiment, folder: str) -> str:
    """A program that loads what an experiment has made in a folder."""
    return SNIPPETS[kind(experiment)].format(
        folder=folder,
        width=experiment.encoder.embed,
        task=next(iter(experiment.finetune.tasks)),
        noun=experiment.data.noun,
    )


def folder(system: System) -> str:
    """Where the first of the recorded runs was written."""
    if system.entry.row:
        return place(default_folder(system.entry.config), system.experiment).as_posix()
    several = "--seeds" in system.records[0].command.split()
    return f"runs/{system.experiment.name}" + ("/seed-0" if several else "")
