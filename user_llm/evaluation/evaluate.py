"""A run's systems and baselines on the test users: one table, and a few users to look at."""

import json
from typing import Any

import numpy as np

from user_llm import metrics, stages
from user_llm.config import SystemConfig
from user_llm.data import lamp
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.tasks import FavoriteCategory, LaMPTask, NextItem, RatingPrediction, Task
from user_llm.data.text import pad
from user_llm.data.timelines import histories, sample, user_of
from user_llm.evaluation import lamp as lamp_scores
from user_llm.evaluation import records
from user_llm.evaluation.answer_costs import Shape
from user_llm.evaluation.baselines import Figures, Groups, answered, ranked
from user_llm.evaluation.system import Answers, System
from user_llm.files import write_atomically
from user_llm.models.streams import maker
from user_llm.runs import Run
from user_llm.training.language import foreteller
from user_llm.training.step import Params

SHOWN = 4  # users whose answers the report shows
COSTED = {"timeline"}  # streams whose operations `flops` knows


def asked_of(run: Run, targets: np.ndarray) -> Groups:
    """What every system is asked, by the name of its figures.

    Each task asks about those of the targets that have what it asks for. A task about many events
    asks users whom training never saw, about their last ones; next items are asked of these too.
    """
    data, most = run.dataset, run.experiment.evaluation.users
    cold = sample(run.split.cold, most or len(run.split.cold))
    groups: Groups = {}
    for task in stages.tasks(run):
        events = targets
        if task.horizon > 1:
            events = cold - (task.horizon - 1)
            events = events[events > data.offsets[user_of(cold, data.offsets)]]
        groups[task.name] = task, events[task.fits(events)]
        if isinstance(task, NextItem) and len(cold):
            groups["cold_users"] = task, cold
    return {name: asked for name, asked in groups.items() if len(asked[1])}


def foretold(run: Run, system: SystemConfig, params: Params) -> Figures:
    """How well a system's decoder foretells plain text; nothing where no text is held out."""
    if not (texts := run.held_out_texts):
        return {}
    foretell = foreteller(run.make_model(system), texts, run.tokenizer, run.mesh)
    return {f"test/text/{name}": value for name, value in foretell(params["decoder"]).items()}


def cost(run: Run, system: System, task: Task, targets: np.ndarray) -> Figures:
    """What a system's answers to a task cost, as means over the users.

    Tokens of the prompt, and operations up to the first token, the user's memory made anew.
    """
    examples = stages.examples(run, system.name, targets)
    _, prompts = examples.prompts([(task, target) for target in targets.tolist()])
    tokens = [len(ids) for ids in system.cut(prompts)]
    before = targets - run.dataset.offsets[user_of(targets, run.dataset.offsets)]
    events = np.minimum(before, run.experiment.finetune.history).tolist()
    inputs = tuple(run.dataset.inputs)
    decoder = system.generator.config  # with the items, where they are tokens
    shape = Shape(run.systems[system.name], decoder, run.experiment.encoder, inputs)
    flops = [shape.memory(h) + shape.first_token(t, h) for t, h in zip(tokens, events, strict=True)]
    return {
        "cost/prompt_tokens": float(np.mean(tokens)),
        "cost/gflop": float(np.mean(flops)) / 1e9,
    }


def judge(run: Run, group: str, task: Task, targets: np.ndarray, answers: Answers) -> Figures:
    """A system's figures on one group."""
    labels = [label(run, task, target) for target in targets.tolist()]
    if isinstance(task, NextItem) and answers.choices is not None:
        wanted = run.dataset.item[targets] - KNOWN
        figures = metrics.Ranking.from_lists(answers.choices.tolist(), wanted.tolist()).compute()
    elif isinstance(task, LaMPTask):
        names = asker_ids(run, targets)
        said, right = (dict(zip(names, texts, strict=True)) for texts in (answers.texts, labels))
        figures = lamp_scores.score(task.name, said, right, task.candidates())
    elif isinstance(task, FavoriteCategory):
        figures = metrics.Accuracy.from_answers(answers.texts, labels).compute()
    elif isinstance(task, RatingPrediction):
        said, given = ([float(x) for x in texts] for texts in (answers.texts, labels))
        figures = metrics.RatingError.from_ratings(said, given).compute()
        if answers.choices is not None:
            meant = answers.expected([float(x) for x in task.candidates()])
            expected = metrics.RatingError.from_ratings(meant, given).compute()
            figures |= {f"expected_{name}": value for name, value in expected.items()}
    else:
        figures = metrics.TextOverlap.from_texts(answers.texts, labels).compute()
    return {f"test/{group}/{name}": value for name, value in figures.items()}


def asker_ids(run: Run, targets: np.ndarray) -> list[str]:
    """The names of those whose events these are."""
    data = run.dataset
    return [data.users[user] for user in user_of(targets, data.offsets).tolist()]


def submit(run: Run, system: System, task: LaMPTask, judged: np.ndarray, given: Answers) -> None:
    """Writes what LaMP's evaluation wants: the answers to all questions of its test set.

    Or of `dev`, where the data set has no test questions: `SPLIT_outputs.json` in the run's folder.
    Those that are `judged` are `given`; if they are not all, all are asked.
    """
    data = run.dataset
    last = data.offsets[1:] - 1
    parts = np.array([lamp.asker(user)[0] for user in data.users])
    split = "test" if (parts == "test").any() else "dev"
    targets = last[parts == split]
    names = [lamp.asker(name)[1] for name in asker_ids(run, targets)]
    said = given if np.array_equal(judged, targets) else system.answer(task, targets)
    answers = dict(zip(names, said.texts, strict=True))
    lamp.submit(run.folder / f"{split}_outputs.json", task.name, answers)


def label(run: Run, task: Task, target: int) -> str:
    """The right answer to a task about an event."""
    (events,) = histories(np.array([target]), run.dataset.offsets, run.experiment.finetune.history)
    return task.ask(events[events >= 0], target).answer


def evaluate(run: Run) -> dict[str, Any]:
    """Every row of the table, written to `evaluation.json` in the run's folder."""
    for stream in run.experiment.system.streams:
        maker(stream)  # which may be gone; better now than behind all the rest
    data, judged = run.dataset, run.experiment.evaluation
    targets = sample(run.split.test, judged.users or len(run.split.test))
    figures = ranked(run, targets) if data.asked is None else {}
    answers: dict[str, dict[str, Answers]] = {}
    costs: dict[str, Figures] = {}
    shown: list[dict[str, Any]] = []
    groups = asked_of(run, targets) if run.experiment.finetune.steps else {}
    for name in run.systems if groups else ():
        system = System(run, name, stages.finetune(run, name))
        answers[name] = {group: system.answer(*asked) for group, asked in groups.items()}
        figures[name] = foretold(run, run.systems[name], system.params)
        for group, (task, events) in groups.items():
            if name == "user_llm" and isinstance(task, LaMPTask):
                submit(run, system, task, events, answers[name][group])
        if "next_item" in groups and COSTED.issuperset(system.config.streams):
            costs[name] = cost(run, system, *groups["next_item"])
        remembers = name == "user_llm" and run.systems[name].remembers
        if remembers and "shuffled_memory" in judged.baselines:
            answers["shuffled_memory"] = {
                group: system.answer(task, events, np.roll(events, len(events) // 2))
                for group, (task, events) in groups.items()
            }
            shown = users(run, system, targets[:SHOWN])
    if run.experiment.language_model.held_out:
        figures["language_model"] = foretold(run, SystemConfig(streams=()), stages.warmup(run))
    told = {
        system: {group: Answers(texts) for group, texts in given.items()}
        for system, given in answered(run, groups).items()
    }
    for name, given in (told | answers).items():
        own = figures.setdefault(name, {})
        for group, said in given.items():
            own |= judge(run, group, *groups[group], said)
    rows = [
        {"system": name, "metrics": own} | ({"cost": costs[name]} if name in costs else {})
        for name, own in figures.items()
    ]
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
            user | {"answers": asked(run, groups, answers, int(targets[i]))}
            for i, user in enumerate(shown)
        ],
    }
    write_atomically(run.folder / "evaluation.json", json.dumps(result, indent=1))
    return result


def read(run: Run) -> dict[str, Any]:
    """What `evaluate` wrote."""
    return json.loads((run.folder / "evaluation.json").read_text())


def users(run: Run, system: System, targets: np.ndarray) -> list[dict[str, Any]]:
    """The histories of some users, and what each cross-attention looks at when it is asked."""
    data, examples = run.dataset, stages.examples(run, system.name, targets)
    shares: list[np.ndarray] = []
    if system.config.looks:
        task = NextItem(data, run.experiment.data.noun)
        asking = [(task, target) for target in targets.tolist()]
        prompts = run.tokenizer.prompts([examples.question(*one).prompt for one in asking])
        batch = examples.timelines(np.arange(len(targets))) | examples.present(asking)
        batch |= pad(prompts, [[]] * len(prompts), max(map(len, prompts)))
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
    run: Run, groups: Groups, answers: dict[str, dict[str, Answers]], target: int
) -> list[dict[str, Any]]:
    """What was asked about one event, with what every system said."""
    (events,) = histories(np.array([target]), run.dataset.offsets, run.experiment.finetune.history)
    found = []
    for group, (task, targets) in groups.items():
        for place in np.flatnonzero(targets == target).tolist():
            question = task.ask(events[events >= 0], target)
            told: dict[str, Any] = {"task": task.name, "prompt": question.prompt}
            told["target"] = question.answer
            told["answers"] = {name: given[group].texts[place] for name, given in answers.items()}
            own = answers["user_llm"][group]
            if own.choices is not None and own.scores is not None:
                names = task.candidates()
                best = zip(own.choices[place], own.scores[place], strict=True)
                told["top"] = [[names[i], round(float(x), 3)] for i, x in best if i >= 0][:5]
            found.append(told)
    return found
