# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# %% [markdown]
# # An encoder, and what it learned
#
# An encoder reads a timeline and foretells, at every event, the next one. This notebook trains a
# small one on the embedded world in about half a minute, and looks at what it made of users and
# films.

# %%
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["TQDM_DISABLE"] = "1"  # no progress bars
warnings.filterwarnings("ignore", "IProgress")  # nor advice on more of them

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

import user_llm
from user_llm.config import DataConfig, EncoderConfig, OptimConfig, PretrainConfig, encoder_only
from user_llm.data.features import KNOWN
from user_llm.data.tasks import FavoriteCategory
from user_llm.data.world import World
from user_llm.evaluation.evaluate import evaluate
from user_llm.evaluation.rows import table
from user_llm.training import tracking

plt.style.use("user_llm.notebook")
temporary = TemporaryDirectory()
os.chdir(temporary.name)  # all files go there

# %% [markdown]
# ## Pre-training
#
# An experiment says what is read, what is built and how it is trained; a run is an experiment in a
# folder. Everything that is left out here has a default.

# %%
experiment = encoder_only(
    name="encoder",
    data=DataConfig(name="world", users=1000),
    encoder=EncoderConfig(window=100, feature_embed=16, heads=1, mlp=128, dropout=0.1),
    pretrain=PretrainConfig(
        steps=150,
        batch_size=32,
        validate_every=25,
        log_every=5,
        optim=OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=20),
    ),
)
run = user_llm.Run(experiment, Path("run"))
user_llm.pretrain(run)

data = run.dataset
print(f"{len(data.users):,} users, {len(data.item):,} events, {len(data.items.ids) - KNOWN} films")

# %% [markdown]
# The loss is that of the next item and of its rating. Beside it: how often the next film of the
# validation, which training never sees, is among the first ten of four hundred.

# %%
log = tracking.read(run.folder / "pretrain")
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for name, label in (("loss_item", "item"), ("loss_rating", "rating")):
    points = [(line["step"], line[name]) for line in log if name in line]
    axes[0].plot(*zip(*points, strict=True), label=label)
axes[0].set(title="training loss, in nats", xlabel="step")
axes[0].legend()
name = "validation/recall_at_10"
points = [(line["step"], line[name]) for line in log if name in line]
axes[1].plot(*zip(*points, strict=True), "o-", color="C2")
axes[1].set(title="validation recall@10", xlabel="step", ylim=(0, None))
plt.show()

# %% [markdown]
# ## How good is that?
#
# Each user's last film has to be found among all that the user has not seen. `popularity` ranks
# films by how often they were watched; the `oracle` knows the probabilities that the world drew
# the film from, so nobody can do better.

# %%
rows = evaluate(run)["rows"]
print(table(rows))

# %%
fig, ax = plt.subplots(figsize=(7, 2.2))
systems = ["popularity", "encoder", "oracle"]
recall = {row["system"]: row["metrics"]["test/next_item/recall_at_10"] for row in rows}
bars = ax.barh(systems, [recall[system] for system in systems], color=["C7", "C0", "C2"])
ax.bar_label(bars, fmt="%.2f", padding=4)
ax.set(title="test recall@10")
plt.show()

# %% [markdown]
# ## What comes next
#
# The trained encoder recommends to anyone with a timeline. Here it is shown all but each user's
# last event; the arrow marks what the user then watched.

# %%
recommender = user_llm.recommender(run)
last = np.isin(np.arange(len(data.item)), run.split.test)
shown = data.without(last)
users = np.arange(len(data.users))


def called(item):
    return f"{data.items.titles[item]} ({', '.join(data.items.genres[item])})"


for user in (3, 4, 7):
    own = shown.item[shown.offsets[user] : shown.offsets[user + 1]]
    truth = data.items.ids[data.item[data.offsets[user + 1] - 1]]
    print(f"user {data.users[user]} watched", *map(called, own[-4:]), sep="\n    ")
    print("  and next, the encoder thinks,")
    for one in recommender.best(shown, np.array([user]), 5)[0]:
        arrow = "→" if one.item == truth else " "
        print(f"  {arrow} {one.score:5.1f}  {called(data.items.ids.index(one.item))}")
    print(f"  watched: {called(data.items.ids.index(truth))}\n")

# %% [markdown]
# Scores are logits of a softmax, so they tell how probable the encoder thinks each film, and the
# world knows how probable it was. Each faint dot is a film that one of a hundred users has not
# seen; the line is the mean truth of the films that the encoder thinks about as probable.

# %%
world = World(users=len(data.users))
belief, truth = [], []
for user in range(100):
    found = recommender.best(shown, np.array([user]), len(data.items.ids))[0]
    odds = np.exp([one.score for one in found])
    belief.extend(odds / odds.sum())
    position = int(shown.offsets[user + 1] - shown.offsets[user])
    probable = world.next_item_probabilities(user, position)
    truth.extend(probable[int(one.item[1:])] for one in found)
belief, truth = np.array(belief), np.array(truth)

edges = np.logspace(-4, 0, 13)
bins = np.digitize(belief, edges)
known = [nth for nth in range(1, len(edges)) if (bins == nth).sum() > 5]
fig, ax = plt.subplots(figsize=(6, 4.2))
ax.loglog(belief, truth, ".", color="C7", ms=3, alpha=0.15)
ax.loglog([belief[bins == n].mean() for n in known], [truth[bins == n].mean() for n in known], "o-")
ax.axline((1e-3, 1e-3), (1e-2, 1e-2), color="C7", ls=":")
ax.set(xlim=(1e-4, 1), ylim=(5e-4, 1), xlabel="the encoder's probability", ylabel="the true one")
plt.show()

# %% [markdown]
# ## What it knows of users
#
# The state after a user's last event is a vector, and so is each film; their product is the film's
# score. The mean score of all films of a genre is then what the encoder thinks of the user's taste
# for it. Below are the means of such tastes, less everyone's, over users by the genre that they
# watched most in their last ten films.

# %%
states = recommender.states(shown, users)
states /= np.linalg.norm(states, axis=1, keepdims=True)
films = np.asarray(recommender.items)[KNOWN:]

task = FavoriteCategory(shown)
genres = task.candidates()
is_of = np.array([[name in own for name in genres] for own in data.items.genres[KNOWN:]])
tastes = states @ films.T @ (is_of / is_of.sum(0))
tastes -= tastes.mean(0)

stops = shown.offsets[1:]
favorite = np.array([task.favorite(np.arange(stop - 10, stop)) for stop in stops])
means = np.stack([tastes[favorite == name].mean(0) for name in genres])

fig, ax = plt.subplots(figsize=(6, 5))
ink = LinearSegmentedColormap.from_list("ink", ["#3b82d000", "#3b82d0"])  # from no colour at all
picture = ax.imshow(means, cmap=ink, vmin=0)
ax.set_xticks(range(len(genres)), genres, rotation=90)
ax.set_yticks(range(len(genres)), genres)
ax.set(title="taste by the encoder", ylabel="lately watched most")
ax.grid(False)
fig.colorbar(picture, label="logits above the mean")
plt.show()

# %% [markdown]
# The same tastes as a map: their two principal components, each user a dot. Twelve genres do not
# fit on a plane, so four that lie apart have a colour.

# %%
_, _, directions = np.linalg.svd(tastes, full_matrices=False)
places = tastes @ directions[:2].T
centres = np.stack([places[favorite == name].mean(0) for name in genres])
far = np.argsort(-np.linalg.norm(centres, axis=1))
coloured = [genres[place] for place in far[:4]]

fig, ax = plt.subplots(figsize=(6, 5))
ax.plot(*places[~np.isin(favorite, coloured)].T, ".", color="C7", alpha=0.35, label="other")
for nth, name in enumerate(coloured):
    ax.plot(*places[favorite == name].T, "o", ms=6, mew=0, color=f"C{nth}", label=name)
ax.set(title="users by taste", xlabel="component 1", ylabel="component 2")
ax.legend(title="lately watched most", loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## Neighbours
#
# Nobody told the encoder of titles and series, or who is like whom. Films nearest by the angle
# between their vectors:

# %%
films = films / np.linalg.norm(films, axis=1, keepdims=True)


def nearest(vectors, own, count):
    return np.argsort(-vectors @ vectors[own])[1 : count + 1]


for film in (10, 100, 200):
    print(called(film + KNOWN), *map(called, nearest(films, film, 4) + KNOWN), sep="\n    ")

alike = is_of.astype(int) @ is_of.T > 0
shared = np.mean([alike[film, nearest(films, film, 1)[0]] for film in range(len(films))])
print(f"\nthe nearest film shares a genre: {shared:.0%}, any film: {alike.mean():.0%}")

# %% [markdown]
# And users nearest by their tastes, with the genres of their last ten films. The two asked about
# are those whose last films were most of one kind.

# %%
tastes /= np.linalg.norm(tastes, axis=1, keepdims=True)
lately = np.stack([is_of[shown.item[stop - 10 : stop] - KNOWN].sum(0) for stop in stops])
for user in np.argsort(-lately.max(1), kind="stable")[:2]:
    for one in (user, *nearest(tastes, user, 4)):
        most = [f"{genres[nth]} {lately[one, nth]}" for nth in np.argsort(-lately[one])[:3]]
        print(f"{'' if one == user else '    '}{data.users[one]}: {', '.join(most)}")

same = np.mean([favorite[user] == favorite[nearest(tastes, user, 1)[0]] for user in users])
chance = sum(np.mean(favorite == name) ** 2 for name in genres)
print(f"\nthe nearest user watched the same genre most: {same:.0%}, any user: {chance:.0%}")
