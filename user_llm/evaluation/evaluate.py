"""A run's systems and baselines on the test users: one table, and a few users to look at."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm.auto import tqdm

from user_llm import stages
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.data.pipeline import Examples
from user_llm.data.tasks import FavoriteCategory, NextItem, Task
from user_llm.data.text import pad
from user_llm.data.timelines import histories, user_of
from user_llm.data.world import World
from user_llm.evaluation import metrics, records
from user_llm.evaluation.next_item import (
    chunks,
    encoder_ranker,
    popularity_ranks,
    seen_items,
)
from user_llm.inference.catalog import Catalog, beam_search
from user_llm.inference.generate import Generator
from user_llm.models.layers import Memory
from user_llm.runs import Run
from user_llm.training.loop import Params

SHOWN = 4  # users whose answers the report shows
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a system answered to one task: per target an answer, or a ranking of item ids."""

    texts: list[str]
    items: np.ndarray | None = None  # [N, beam], best first, -1 where there is none
    scores: np.ndarray | None = None


class System:
    """A fine-tuned system, ready to be asked."""

    def __init__(self, run: Run, name: str, params: Params):
        self.run, self.name, self.params = run, name, params
        model = nnx.eval_shape(lambda: run.make_model(run.systems[name])(rngs=nnx.Rngs(0)))
        self.graphdef = nnx.graphdef(model)
        self.soft = model.system.fusion == "soft_prompt"
        decoder = nnx.merge(self.graphdef, params).decoder
        self.generator = Generator(decoder)
        self.crossed = decoder.cross is not None
        limit = run.decoder_config.max_position_embeddings
        self.room = limit - run.experiment.evaluation.max_new_tokens

        @jax.jit
        def memory(params, batch):
            model = nnx.merge(self.graphdef, params)
            return model.fuse(model.memories(batch))

        @jax.jit
        def attention(params, batch):
            return nnx.merge(self.graphdef, params).attention(batch)

        self._memory, self.attention = memory, attention

    def memory(self, examples: Examples, rows: np.ndarray) -> dict[str, Memory]:
        """The memory of these examples' users, as the keyword that the generator takes."""
        if not self.run.systems[self.name].streams:
            return {}
        found = self._memory(self.params, examples.timelines(rows))
        return {"prefix" if self.soft else "memory": found}

    def answer(self, task: Task, targets: np.ndarray, users: np.ndarray | None = None) -> Answers:
        """The answers to a task about these events, with the memory of `users`, else their own."""
        run, judged = self.run, self.run.experiment.evaluation
        examples = stages.examples(run, self.name, targets)
        others = stages.examples(run, self.name, targets if users is None else users)
        catalog = self._catalog(task)
        beam = min(judged.beam, len(catalog)) if catalog else 0
        texts, items, scores = [], [], []
        bar = tqdm(total=len(targets), desc=f"{self.name} {task.name}", leave=False)
        for rows, length in chunks(np.arange(len(targets)), judged.batch_size):
            prompts = [examples.question(task, target).prompt for target in targets[rows]]
            tokens = [fit(ids, self.room) for ids in run.tokenizer.prompts(prompts)]
            memory = self.memory(others, rows)
            if catalog is None:
                written = self.generator.generate(
                    tokens,
                    max_new_tokens=judged.max_new_tokens,
                    stop={run.tokenizer.eos},
                    **memory,
                )
                texts += [run.tokenizer.decode(ids) for ids in written][:length]
            else:
                seen = None
                if isinstance(task, NextItem):
                    seen = seen_items(run.dataset, targets[rows])[:, KNOWN:]
                found, points = beam_search(
                    self.generator, tokens, catalog, beam=beam, exclude=seen, **memory
                )
                items.append(found[:length])
                scores.append(points[:length])
                names = task.candidates()
                texts += [names[best] if best >= 0 else "" for best in found[:length, 0]]
            bar.update(length)
        bar.close()
        if not items:
            return Answers(texts)
        return Answers(texts, np.concatenate(items), np.concatenate(scores))

    def _catalog(self, task: Task) -> Catalog | None:
        names = task.candidates()
        if not names:
            return None
        return Catalog(self.run.tokenizer.answers(names), self.run.decoder_config.vocab_size)


def fit(ids: list[int], room: int) -> list[int]:
    """A prompt that fits: its oldest part goes, but for the first token."""
    surplus = max(0, len(ids) - room)
    return [*ids[:1], *ids[1 + surplus :]]


def judge(run: Run, task: Task, targets: np.ndarray, answers: Answers) -> Figures:
    """A system's figures on one task."""
    if isinstance(task, NextItem):
        wanted = run.dataset.item[targets] - KNOWN
        figures = metrics.Ranking.from_lists(answers.items.tolist(), wanted.tolist())
    else:
        labels = [label(run, task, target) for target in targets]
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
            user | {"answers": [asked(run, task, answers, i, targets[i]) for task in tasks]}
            for i, user in enumerate(shown)
        ],
    }
    records.write_atomically(run.folder / "evaluation.json", json.dumps(result, indent=1))
    return result


def read(run: Run) -> dict[str, Any]:
    """What `evaluate` wrote."""
    return json.loads((run.folder / "evaluation.json").read_text())


def ranked(run: Run, targets: np.ndarray) -> dict[str, Figures]:
    """The rows that rank the catalogue without a language model: encoder, popularity, oracle."""
    data = run.dataset
    ranks = {"popularity": popularity_ranks(data, run.training_events, targets)}
    if run.experiment.pretrain.steps or run.experiment.encoder_from:
        ranker = encoder_ranker(run.make_encoder, data, targets, mesh=run.mesh)
        ranks["encoder"] = ranker(stages.encoder(run))
    rows = {}
    if run.experiment.data.name == "world":
        truth = World(users=run.experiment.data.users, seed=run.experiment.data.seed)
        figures = truth.oracle()["oracle"]
        rows["oracle"] = {f"test/next_item/{name}": value for name, value in figures.items()}
    for name, found in ranks.items():
        figures = metrics.Ranking.from_ranks(found).compute()
        rows[name] = {f"test/next_item/{metric}": value for metric, value in figures.items()}
    return rows


def users(run: Run, system: System, targets: np.ndarray) -> list[dict[str, Any]]:
    """The histories of some users, and what each cross-attention looks at when it is asked."""
    data, examples = run.dataset, stages.examples(run, system.name, targets)
    shares: list[np.ndarray] = []
    if system.crossed:
        task = NextItem(data)
        prompts = run.tokenizer.prompts([examples.question(task, t).prompt for t in targets])
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
            {"user": user, "history": [event(data, e) for e in events], "attention": weights}
        )
    return found


def event(data: Dataset, index: int) -> dict[str, Any]:
    """One event in words."""
    item = data.item[index]
    told: dict[str, Any] = {"title": data.items.titles[item], "genres": data.items.genres[item]}
    if data.ratings is not None:
        told["rating"] = float(data.ratings[index])
    if data.reviews is not None:
        told["review"] = data.reviews[index]
    return told


def asked(
    run: Run, task: Task, answers: dict[str, dict[str, Answers]], user: int, target: int
) -> dict[str, Any]:
    """One question to one user, with what every system said."""
    (events,) = histories(np.array([target]), run.dataset.offsets, run.experiment.finetune.history)
    question = task.ask(events[events >= 0], target)
    told = {"task": task.name, "prompt": question.prompt, "target": question.answer}
    told["answers"] = {name: given[task.name].texts[user] for name, given in answers.items()}
    own = answers["user_llm"][task.name]
    if own.items is not None:
        names = task.candidates()
        ranked = zip(own.items[user], own.scores[user], strict=True)
        told["top"] = [[names[i], round(float(score), 3)] for i, score in ranked if i >= 0][:5]
    return told
