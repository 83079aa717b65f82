"""The rows without a language model: popularity, the user's past, the encoder's own head.

They rank the next item among all, and answer what else can be answered from categories and stars.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from user_llm import metrics, stages
from user_llm.data.tasks import (
    FavoriteCategory,
    FutureFavorite,
    LaMPTask,
    RatingAmongPeers,
    RatingPrediction,
    Task,
)
from user_llm.data.timelines import histories, sample, user_of
from user_llm.data.world import World
from user_llm.inference.next_item import (
    USERS,
    asker,
    chunks,
    encoder_ranker,
    popularity_ranks,
    seen_lists,
)
from user_llm.inference.retrieval import TILE, best
from user_llm.runs import Run

logger = logging.getLogger(__name__)

FORETOLD = 10  # items of which the encoder's favorite category is the most frequent

Figures = dict[str, float]
Groups = dict[str, tuple[Task, np.ndarray]]  # by the name of the figures: what asks, about which
Texts = dict[str, list[str]]


def ranked(run: Run, targets: np.ndarray) -> dict[str, Figures]:
    """The rows that rank the catalogue: encoder, popularity, oracle.

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
    groups |= {n: sample(t, most or len(t)) for n, t in further.items() if len(t)}
    everyone = np.concatenate(list(groups.values()))
    ranks = {}
    if run.experiment.data.name == "world":
        asked_of = run.experiment.data
        kind = asked_of.version or "fans"
        truth = World(users=asked_of.users, seed=asked_of.seed, kind=kind).ranks()
        asked = user_of(targets, data.offsets).tolist()
        ranks["oracle"] = np.array([truth["oracle"][data.users[user]] for user in asked])
    ranks["popularity"] = popularity_ranks(data, run.training_events, everyone)
    if has_encoder(run):
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


def answered(run: Run, groups: Groups) -> dict[str, Texts]:
    """The answers of popularity, past and encoder to the groups that ask for categories and stars.

    `popularity` says the category of most training events, an item's mean stars, or the label of
    most training questions; `past`, of what is to come, the favorite category so far, the label
    that the user has given most, or what others gave and as much more as the user tends to give;
    `encoder` the category of the items that it ranks first.
    """
    rows: dict[str, Texts] = {"popularity": {}, "past": {}, "encoder": {}}
    for name, (task, targets) in groups.items():
        if isinstance(task, FavoriteCategory):
            rows["popularity"][name] = [commonest(run)] * len(targets)
        if isinstance(task, FutureFavorite):
            rows["past"][name] = past(run, task, targets)
            if has_encoder(run):
                rows["encoder"][name] = foretold(run, task, targets)
        if isinstance(task, RatingPrediction):
            rows["popularity"][name] = mean_stars(run, task, targets)
        if isinstance(task, RatingAmongPeers):
            rows["past"][name] = own_leaning(run, task, targets)
        if isinstance(task, LaMPTask) and task.candidates():
            rows["popularity"][name] = [commonest_label(run, task)] * len(targets)
            if task.kind.label:
                rows["past"][name] = own_labels(run, task, targets)
    return {system: texts for system, texts in rows.items() if texts}


def has_encoder(run: Run) -> bool:
    return bool(run.experiment.pretrain.steps or run.experiment.encoder_from)


def commonest(run: Run) -> str:
    """The category of most training events; of equals the first in the alphabet."""
    data = run.dataset
    seen = Counter(data.item[run.training_events].tolist())
    counts: Counter[str] = Counter()
    for item, count in seen.items():
        counts.update(dict.fromkeys(data.items.genres[item], count))
    return min(counts, key=lambda genre: (-counts[genre], genre), default="")


def commonest_label(run: Run, task: LaMPTask) -> str:
    """The answer to most training questions; of stars the one in the middle, which errs least."""
    asked = run.training_events[task.fits(run.training_events)]
    return typical(task, [task.asked.outputs[int(event)] for event in asked])


def own_labels(run: Run, task: LaMPTask, targets: np.ndarray) -> list[str]:
    """The same of each user's own past, without one that of training."""
    data, everyone = run.dataset, commonest_label(run, task)
    events = histories(targets, data.offsets, run.experiment.finetune.history)
    labels = np.array(data.items.ids)[data.item]
    pasts = (list(map(str, labels[row[row >= 0]])) for row in events)
    return [typical(task, past) if past else everyone for past in pasts]


def typical(task: LaMPTask, labels: Sequence[str]) -> str:
    """The middle one of stars, the most frequent of other labels; of equals the first by name."""
    if task.name == "LaMP_3":
        return sorted(labels, key=float)[len(labels) // 2]
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def past(run: Run, task: FavoriteCategory, targets: np.ndarray) -> list[str]:
    """Each user's favorite category among the events that a system sees before a target."""
    events = histories(targets, run.dataset.offsets, run.experiment.finetune.history)
    return [task.favorite(row[row >= 0]) for row in events]


def foretold(run: Run, task: FavoriteCategory, targets: np.ndarray) -> list[str]:
    """The favorite category of the items that the encoder ranks first, of equals the best one's."""
    data, found = run.dataset, []
    queries, table = asker(run.make_encoder, data, targets, mesh=run.mesh)(stages.encoder(run))
    for piece, length in chunks(np.arange(len(targets)), USERS):
        seen = seen_lists(data, targets[piece])
        items, _ = best(queries[piece], table, seen, FORETOLD, min(TILE, len(table)))
        found += np.asarray(items)[:length].tolist()
    return [task.most_frequent([i for i in reversed(row) if i >= 0]) for row in found]


def mean_stars(run: Run, task: RatingPrediction, targets: np.ndarray) -> list[str]:
    """The rating nearest to the mean of the item's in training, or of all where it has none."""
    data, events = run.dataset, run.training_events
    assert data.ratings is not None, "a task about ratings fits no event without one"
    events = events[~np.isnan(data.ratings[events])]
    rating, item = data.ratings[events].astype(float), data.item[events]
    count = np.bincount(item, minlength=len(data.items.ids))
    total = np.bincount(item, rating, minlength=len(data.items.ids))
    means = np.where(count > 0, total / np.maximum(count, 1), rating.mean())[data.item[targets]]
    names = task.candidates()
    steps = np.array([float(name) for name in names])
    return [names[i] for i in np.abs(means[:, None] - steps).argmin(1)]


def own_leaning(run: Run, task: RatingAmongPeers, targets: np.ndarray) -> list[str]:
    """What others gave before, and the mean by which the user differed from others in the past."""
    data = run.dataset
    assert data.ratings is not None, "a task about ratings fits no event without one"
    apart = data.ratings - task.before
    everyone = float(np.nanmean(data.ratings[run.training_events]))
    names, said = task.candidates(), []
    stars = np.array([float(name) for name in names])
    events = histories(targets, data.offsets, run.experiment.finetune.history)
    for row, target in zip(events, targets.tolist(), strict=True):
        own = apart[row[row >= 0]]
        known = own[~np.isnan(own)]
        before = everyone if np.isnan(task.before[target]) else task.before[target]
        guess = before + (known.mean() if len(known) else 0.0)
        said.append(names[int(np.abs(stars - guess).argmin())])
    return said
