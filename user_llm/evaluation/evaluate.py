"""A run's systems and baselines on the test users: one table, and a few users to look at."""

import json
import logging
from typing import Any

import numpy as np

from user_llm import stages
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.tasks import FavoriteCategory, NextItem, Task
from user_llm.data.text import pad
from user_llm.data.timelines import histories, user_of
from user_llm.data.world import World
from user_llm.evaluation import metrics, records
from user_llm.evaluation.next_item import encoder_ranker, popularity_ranks
from user_llm.evaluation.system import Answers, System
from user_llm.runs import Run

logger = logging.getLogger(__name__)

SHOWN = 4  # users whose answers the report shows
Figures = dict[str, float]


def judge(run: Run, task: Task, targets: np.ndarray, answers: Answers) -> Figures:
    """A system's figures on one task."""
    if isinstance(task, NextItem) and answers.choices is not None:
        wanted = run.dataset.item[targets] - KNOWN
        figures = metrics.Ranking.from_lists(answers.choices.tolist(), wanted.tolist())
    else:
        labels = [label(run, task, target) for target in targets.tolist()]
        if isinstance(task, FavoriteCategory):
            figures = metrics.Accuracy.from_answers(answers.texts, labels)
        else:
            figures = metrics.TextOverlap.from_texts(answers.texts, labels)
    return {f"test/{task.name}/{name}": value for name, value in figures.compute().items()}


def label(run: Run, task: Task, target: int) -> str:
    """The right answer to a task about an event."""
    (events,) = histories(np.array([target]), run.dataset.offsets, run.experiment.finetune.history)
    return task.ask(events[events >= 0], target).answer


def evaluate(run: Run) -> dict[str, Any]:
    """Every row of the table, written to `evaluation.json` in the run's folder."""
    data, judged = run.dataset, run.experiment.evaluation
    targets = stages.sample(run.split.test, judged.users or len(run.split.test))
    rows = [{"system": n, "metrics": f} for n, f in ranked(run, targets).items()]
    answers: dict[str, dict[str, Answers]] = {}
    shown: list[dict[str, Any]] = []
    tasks = list(stages.tasks(run)) if run.experiment.finetune.steps else []
    for name in run.systems if tasks else ():
        system = System(run, name, stages.finetune(run, name))
        answers[name] = {task.name: system.answer(task, targets) for task in tasks}
        if name == "user_llm" and "shuffled_memory" in judged.baselines:
            shuffled = np.roll(targets, len(targets) // 2)
            answers["shuffled_memory"] = {
                t.name: system.answer(t, targets, shuffled) for t in tasks
            }
            shown = users(run, system, targets[:SHOWN])
    for name, given in answers.items():
        figures = {}
        for task in tasks:
            figures |= judge(run, task, targets, given[task.name])
        rows.append({"system": name, "metrics": figures})
    result = {
        "experiment": run.experiment.name,
        **records.provenance(),
        "dataset": {
            "users": len(data.users),
            "items": len(data.items.ids) - KNOWN,
            "events": len(data.item),
            "asked": len(targets),
        },
        "rows": rows,
        "users": [
            user | {"answers": [asked(run, task, answers, i, int(targets[i])) for task in tasks]}
            for i, user in enumerate(shown)
        ],
    }
    records.write_atomically(run.folder / "evaluation.json", json.dumps(result, indent=1))
    return result


def read(run: Run) -> dict[str, Any]:
    """What `evaluate` wrote."""
    return json.loads((run.folder / "evaluation.json").read_text())


def ranked(run: Run, targets: np.ndarray) -> dict[str, Figures]:
    """The rows that rank the catalogue without a language model: encoder, popularity, oracle.

    Beside the targets, which are `next_item`, the users whom training never saw are asked
    (`cold_users`), and who chose an item that it never saw (`new_items`), where any are held out;
    and of a run that has grown from another those whom that one knew (`old_users`).
    """
    data, most = run.dataset, run.experiment.evaluation.users
    further = {
        "new_items": run.split.new_items,
        "cold_users": run.split.cold,
        "old_users": old_users(run),
    }
    groups = {"next_item": targets}
    groups |= {n: stages.sample(t, most or len(t)) for n, t in further.items() if len(t)}
    everyone = np.concatenate(list(groups.values()))
    ranks = {}
    if run.experiment.data.name == "world":
        truth = World(users=run.experiment.data.users, seed=run.experiment.data.seed).ranks()
        asked = user_of(targets, data.offsets).tolist()
        ranks["oracle"] = np.array([truth["oracle"][data.users[user]] for user in asked])
    ranks["popularity"] = popularity_ranks(data, run.training_events, everyone)
    if run.experiment.pretrain.steps or run.experiment.encoder_from:
        ranker = encoder_ranker(run.make_encoder, data, everyone, mesh=run.mesh)
        ranks["encoder"] = ranker(stages.encoder(run))
    rows = {}
    for name, found in ranks.items():
        rows[name], first = {}, 0
        for group, asked in groups.items():
            own = found[first : first + len(asked)]  # the oracle knows of the first group alone
            first += len(asked)
            figures = metrics.Ranking.from_ranks(own).compute()
            rows[name] |= {f"test/{group}/{metric}": value for metric, value in figures.items()}
    return rows


def old_users(run: Run) -> np.ndarray:
    """The test targets of those whom the run that this one has grown from was trained on.

    None if it has not grown, or that run is there no more.
    """
    if not run.experiment.grow_from:
        return np.zeros(0, np.int64)
    try:
        old = run.earlier
    except ValueError as error:
        logger.warning("its users are not judged apart: %s", error)
        return np.zeros(0, np.int64)
    trained = old.split.train_stop > old.dataset.offsets[:-1]
    known = {user for user, there in zip(old.dataset.users, trained, strict=True) if there}
    asked = user_of(run.split.test, run.dataset.offsets).tolist()
    return run.split.test[[run.dataset.users[user] in known for user in asked]]


def users(run: Run, system: System, targets: np.ndarray) -> list[dict[str, Any]]:
    """The histories of some users, and what each cross-attention looks at when it is asked."""
    data, examples = run.dataset, stages.examples(run, system.name, targets)
    shares: list[np.ndarray] = []
    if system.crossed:
        task = NextItem(data)
        prompts = run.tokenizer.prompts(
            [examples.question(task, t).prompt for t in targets.tolist()]
        )
        batch = examples.timelines(np.arange(len(targets))) | pad(
            prompts, [[]] * len(prompts), max(map(len, prompts))
        )
        attention = np.asarray(system.attention(system.params, batch))  # [G, B, T, E]
        shares = [attention[:, i, len(prompt) - 1] for i, prompt in enumerate(prompts)]
    found = []
    for i, target in enumerate(targets):
        (events,) = histories(np.array([target]), data.offsets, run.experiment.finetune.history)
        events = events[events >= 0]
        user = data.users[user_of(np.array([target]), data.offsets)[0]]
        weights = shares[i][:, : len(events)].tolist() if shares else []
        found.append(
            {
                "user": user,
                "history": [event(data, e) for e in events.tolist()],
                "attention": weights,
            }
        )
    return found


def event(data: Dataset, index: int) -> dict[str, Any]:
    """One event in words."""
    item = data.item[index]
    told: dict[str, Any] = {
        "title": data.items.titles[item],
        "genres": list(data.items.genres[item]),
    }
    if data.ratings is not None:
        told["rating"] = float(data.ratings[index])
    if review := data.review(index):
        told["review"] = review
    return told


def asked(
    run: Run, task: Task, answers: dict[str, dict[str, Answers]], user: int, target: int
) -> dict[str, Any]:
    """One question to one user, with what every system said."""
    (events,) = histories(np.array([target]), run.dataset.offsets, run.experiment.finetune.history)
    question = task.ask(events[events >= 0], target)
    told: dict[str, Any] = {"task": task.name, "prompt": question.prompt}
    told["target"] = question.answer
    told["answers"] = {name: given[task.name].texts[user] for name, given in answers.items()}
    own = answers["user_llm"][task.name]
    if own.choices is not None and own.scores is not None:
        names = task.candidates()
        ranked = zip(own.choices[user], own.scores[user], strict=True)
        told["top"] = [[names[i], round(float(score), 3)] for i, score in ranked if i >= 0][:5]
    return told
