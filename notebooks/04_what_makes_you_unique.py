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
# # What makes you unique
#
# Two people give the same film three stars: one liked it less than everybody, the other more.
# What sets an event apart from those of *peers*, others at the same item before, can stand beside
# the timeline as tokens of its own. This notebook shows what such a difference is, whether it
# tells a language model more, and what is left of it when it is taken from the wrong people.

# %%
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["TQDM_DISABLE"] = "1"  # no progress bars
warnings.filterwarnings("ignore", "IProgress")  # nor advice on more of them

import jax
import matplotlib.pyplot as plt
import numpy as np

import user_llm
from user_llm import quickstart, stages
from user_llm.config import (
    DataConfig,
    DifferenceConfig,
    FinetuneConfig,
    LanguageModelConfig,
    ObjectiveConfig,
    OptimConfig,
    PeerConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    WarmupConfig,
    encoder_only,
)
from user_llm.data import peer_building
from user_llm.data.timelines import user_of
from user_llm.evaluation import baselines

plt.style.use("user_llm.notebook")
temporary = TemporaryDirectory()
os.chdir(temporary.name)  # all files go there
jax.config.update("jax_compilation_cache_dir", "compiled")  # once for systems of one shape

# %% [markdown]
# ## A world of critics
#
# `version="critics"` makes the embedded world one in which everyone watches what all watch. A
# critic's stars tell how good the film is, and how lenient the critic. There are so many films
# that each is rare, and nobody knows from its name how good it is: only the stars of others at
# the same film tell which of the two it was.

# %%
base = quickstart.config()
critics = DataConfig(name="world", version="critics", users=600)


def stage(steps, rate=3e-3, rows=32):
    optim = OptimConfig(learning_rate=rate, schedule="cosine", warmup_steps=20)
    return {"steps": steps, "batch_size": rows, "optim": optim}


# Which film comes next, and not what stars it gets: those are asked for later.
unrated = ObjectiveConfig(weights={"rating": 0})
reader = encoder_only(
    name="encoder",
    data=critics,
    encoder=base.encoder,
    pretrain=PretrainConfig(**stage(40, rows=16), objective=unrated),
)
encoder = user_llm.Run(reader, Path("encoder"))
data = encoder.dataset
print(f"{len(data.users)} critics, {len(set(data.item.tolist()))} films, {len(data.item)} events")

# %% [markdown]
# An index of who was there before gives every event its peers, the newest first, never one that
# came later. How far a critic is from them, on the mean of all films, is the leaning that the
# differences ought to tell.

# %%
index = peer_building.build(Path("peers"), data.offsets, data.times, data.item)
peers = index.same_item(np.arange(len(data.item)), most=16)  # events [N, 16], -1 behind them
stars = np.where(peers >= 0, data.ratings[peers], np.nan)
compared = (peers >= 0).any(axis=1)
apart = np.full(len(data.item), np.nan)
apart[compared] = data.ratings[compared] - np.nanmean(stars[compared], axis=1)
own = [slice(*data.offsets[user : user + 2]) for user in range(len(data.users))]
leaning = np.array([np.nanmean(apart[events]) for events in own])
strict, lenient = np.argsort(leaning)[[30, -30]]

fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=(3, 3, 2))
two = {"strict": (strict, "C1"), "lenient": (lenient, "C0")}
for ax, (name, (user, color)) in zip(axes, two.items(), strict=False):
    events = np.arange(len(data.item))[own[user]]
    events = events[(peers[events] >= 0).sum(1) >= 5][:20]
    for at, event in enumerate(events):
        others = stars[event][peers[event] >= 0]
        ax.scatter(at + np.linspace(-0.25, 0.25, len(others)), others, s=7, color="C7", lw=0)
    ax.scatter(range(len(events)), data.ratings[events], s=42, color=color, zorder=3)
    ax.set(title=f"a {name} critic", xlabel="films in the order of time", yticks=range(1, 6))
    ax.set_xticks([])
axes[0].set_ylabel("stars: the critic's, and peers'")
axes[2].hist(leaning, bins=25, color="C7", alpha=0.6)
for user, color in two.values():
    axes[2].axvline(leaning[user], color=color)
axes[2].set(title="all critics", xlabel="stars more than peers", ylabel="critics")
plt.show()

# %% [markdown]
# ## Four systems
#
# Each is asked how many stars a critic will give the next film. The question tells what others
# gave it on the mean; what is asked for is the critic's part. All read two events of the critic:
#
# | system | reads |
# |---|---|
# | timeline | the two events |
# | + differences | and what sets them apart: their vectors less the mean of their peers' |
# | + strangers' | and as many tokens of differences from random events of others, at any film |
# | + zeros | and as many tokens of no difference at all |
#
# The last two are controls: they have the same tokens, parameters and steps, and lack nothing but
# the comparison. An encoder and a decoder are trained first, once for all: the decoder learns to
# read the question, of nobody.

# %%
unused = {"align": StageConfig(steps=0), "pretrain": PretrainConfig(steps=0)}
unused |= {"warmup": WarmupConfig(steps=0), "data": critics}
# Of a question the last 12 tokens are read: what others gave, and not the film's title.
asked = {"tasks": {"rating_among_peers": 1.0}, "max_tokens": 12, "history": 2}
nobody = base.model_copy(
    update=unused
    | {"system": base.system.model_copy(update={"streams": ()})}
    | {"finetune": FinetuneConfig(**stage(400), **asked)}
)
shared = {
    "encoder_from": "encoder",
    "language_model": LanguageModelConfig(from_run="nobody", from_stage="finetune"),
    "finetune": FinetuneConfig(**stage(250, rate=1.5e-3, rows=48), **asked),
}
latents = PerceiverConfig(latents=4, layers=1)


def reads(peers=None):
    streams = ("timeline", "difference") if peers else ("timeline",)
    compared = DifferenceConfig(peers=peers or PeerConfig(), events=2, perceiver=latents)
    changes = {"streams": streams, "difference": compared, "perceiver": latents}
    system = base.system.model_copy(update=changes | {"encoder_frozen": True})
    return base.model_copy(update=unused | shared | {"system": system})


experiments = {
    "nobody": nobody,
    "timeline": reads(),
    "+ differences": reads(PeerConfig(chosen="newest")),
    "+ strangers'": reads(PeerConfig(chosen="shuffled")),
    "+ zeros": reads(PeerConfig(chosen="none")),
}
systems = {}
user_llm.pretrain(encoder)
for name, experiment in experiments.items():
    run = user_llm.Run(experiment, Path(name))
    encoder.share(run)  # the data set in memory
    systems[name] = user_llm.System(run, "user_llm", user_llm.finetune(run))

# %% [markdown]
# ## What they get wrong
#
# Every critic's last two films are asked for; training saw neither. Beside the systems stands
# what can be said without a model: others' mean and as much more as the critic gave than others
# at the two events.

# %%
targets = np.concatenate([encoder.split.validation, encoder.split.test])
given = data.ratings[targets]
wrong = {}
for name, system in systems.items():
    task = user_llm.TASKS["rating_among_peers"](data)
    said = system.answer(task, targets).texts
    wrong[name] = np.abs(np.array(said, float) - given)
told = baselines.answered(systems["timeline"].run, {"stars": (task, targets)})
wrong["no model"] = np.abs(np.array(told["past"]["stars"], float) - given)
for name, errors in wrong.items():
    spread = errors.std() / len(errors) ** 0.5
    print(f"{name:14} wrong by {errors.mean():.3f} ±{spread:.3f} stars")

# %% [markdown]
# The run here is small, of 600 critics, one seed, and a few hundred steps: enough to tell the
# systems apart, and far from what they reach. At the right is what `configs/world/differences.py`
# reached with 2,000 critics and three seeds, also with two events, as
# `configs/world/results.json` has it. The strokes at the bars' ends are the standard error over
# critics here, and the spread of the seeds there.

# %%
recorded = {  # of three seeds
    "timeline": (0.467, 0.485, 0.495),
    "+ differences": (0.359, 0.375, 0.376),
    "+ strangers'": (0.456, 0.469, 0.488),
    "+ zeros": (0.465, 0.464, 0.468),
    "no model": (0.382,),
}
colors = {"+ differences": "C0", "no model": "C2", "nobody": "C2"}
here = {name: (errors.mean(), errors.std() / len(errors) ** 0.5) for name, errors in wrong.items()}
there = {name: (np.mean(some), np.std(some)) for name, some in recorded.items()}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True)
titles = ("here", "recorded: 2,000 critics, 3 seeds")
for ax, found, title in zip(axes, (here, there), titles, strict=True):
    names = list(found)[::-1]
    means, spreads = zip(*(found[name] for name in names), strict=True)
    ax.barh(names, means, xerr=spreads, color=[colors.get(n, "C7") for n in names], ecolor="C3")
    for at, mean in enumerate(means):
        ax.text(0.02, at, f"{mean:.2f}", va="center", color="white", fontweight="bold")
    ax.set(title=title, xlabel="mean absolute error, stars")
    ax.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# Differences help, and their controls hardly do. It is the comparison that tells, not the room
# that it takes. What is said without a model is not reached here, and just passed in the recorded
# runs: in this world a mean is nearly all there is to know.
#
# Who sees films often does not need it: their quality is then known by heart, and peers say
# nothing new. So it is on real timelines, where [differences tell
# nothing](../configs/differences/README.md) that their controls do
# not.

# %% [markdown]
# ## What the tokens look like
#
# A Perceiver makes four tokens of what sets a critic's two events apart, in the decoder's width.
# Above, those of the strict and of the lenient critic; a token's numbers stand in the order in
# which the two differ. Below, the main direction in which all critics' tokens vary, against their
# leaning over all their films. Strangers' tokens lean, too: they hold the critic's own stars,
# from which the film's quality was not taken.


# %%
def tokens(system):
    examples = stages.examples(system.run, "user_llm", encoder.split.test)
    memory = system.memory(examples, np.arange(len(examples)))["memory"]
    return np.asarray(memory.tokens)[:, -latents.latents :]  # [critics, 4, width]


critic = user_of(encoder.split.test, data.offsets)
found = {name: tokens(systems[name]) for name in ("+ differences", "+ strangers'")}
rows = [np.flatnonzero(critic == user)[0] for user, _ in two.values()]
pair = found["+ differences"][rows]
order = np.argsort((pair[1] - pair[0]).mean(0))
fig = plt.figure(figsize=(9, 5.6))
grid = fig.add_gridspec(2, 2, height_ratios=(2, 3))
for at, (name, token) in enumerate(zip(two, pair, strict=True)):
    ax = fig.add_subplot(grid[0, at])
    most = np.abs(pair).max()
    ax.imshow(token[:, order], cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    ax.set(title=f"tokens of the {name} critic", yticks=range(4), ylabel="token")
    ax.grid(visible=False)
for at, (name, some) in enumerate(found.items()):
    flat = some.reshape(len(some), -1)
    flat = flat - flat.mean(0)
    main = flat @ np.linalg.svd(flat, full_matrices=False)[2][0]
    related = np.corrcoef(main, leaning[critic])[0, 1]
    main *= np.sign(related)
    ax = fig.add_subplot(grid[1, at])
    ax.scatter(leaning[critic], main, s=9, color="C7", lw=0, alpha=0.7)
    ax.scatter(leaning[critic][rows], main[rows], s=60, color=["C1", "C0"], zorder=3)
    ax.set(title=f"{name}: correlation {abs(related):.2f}", xlabel="stars more than peers")
    ax.set_ylabel("main direction of tokens")
plt.show()

# %% [markdown]
# To try it on your own data: `--system.streams timeline difference`, and of the controls
# `--system.difference.peers.chosen shuffled` and `none`. Differences of what was *written*, by a
# text encoder's vectors, are `--system.difference.vectors text`.
