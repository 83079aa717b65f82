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
# # A language model that reads a user
#
# A tiny decoder is taught to read what an encoder knows of a user: not as text, but as a few
# vectors, its *memory* of the user, which gated cross-attentions look at. All of it is trained here
# in about a minute. Then the same words are asked with one user's memory and with another's.

# %%
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["TQDM_DISABLE"] = "1"  # no progress bars
warnings.filterwarnings("ignore", "IProgress")  # nor advice on more of them

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm

import user_llm
from user_llm import stages
from user_llm.config import (
    CrossAttentionConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    FinetuneConfig,
    LanguageModelConfig,
    OptimConfig,
    PerceiverConfig,
    PretrainConfig,
    StageConfig,
    SystemConfig,
    WarmupConfig,
)
from user_llm.data import timelines
from user_llm.evaluation.evaluate import judge, label
from user_llm.training import tracking

plt.style.use("user_llm.notebook")
temporary = TemporaryDirectory()
os.chdir(temporary.name)  # all files go there

# %% [markdown]
# ## A small system
#
# The encoder reads the last twenty events of a timeline. A Perceiver compresses their states to
# eight latents, and the newest state joins them: the memory. Behind each of the decoder's two
# layers a cross-attention reads the memory. Words are learnt from the world's texts; films are
# tokens of their own, made of what the encoder knows of each (`item_tokens`).

# %%
optim = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=10)
experiment = user_llm.Experiment(
    name="reading",
    data=DataConfig(name="world", users=1000),
    encoder=EncoderConfig(
        window=100, feature_embed=16, heads=1, mlp=128, dropout=0.1, temperature=0.07
    ),
    language_model=LanguageModelConfig(
        architecture=DecoderConfig(
            vocab_size=512,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
        ),
        reviews=1000,
    ),
    system=SystemConfig(
        perceiver=PerceiverConfig(latents=8, layers=1, heads=4),
        cross_attention=CrossAttentionConfig(every=1, heads=3, gate=0.9),
        item_tokens=True,
        encoder_frozen=True,
    ),
    pretrain=PretrainConfig(steps=150, batch_size=32, optim=optim),
    warmup=WarmupConfig(steps=60, batch_size=32, optim=optim),
    align=StageConfig(steps=80, batch_size=96, optim=optim),
    finetune=FinetuneConfig(
        tasks={"favorite_category": 0.6, "next_item": 0.4},
        steps=220,
        batch_size=64,
        history=20,
        max_tokens=24,
        optim=optim,
    ),
)
run = user_llm.Run(experiment, Path("run"))

# %% [markdown]
# `finetune` goes through all that comes before it: the encoder learns users, the decoder words
# (`warmup`), then how a user's state names a film (`align`), and at last to answer about users.

# %%
params = user_llm.finetune(run)

fig, axes = plt.subplots(1, 4, figsize=(9, 2.4))
for ax, stage in zip(axes, ("pretrain", "warmup", "align", "finetune-user_llm"), strict=True):
    points = [(x["step"], x["loss"]) for x in tracking.read(run.folder / stage) if "loss" in x]
    ax.plot(*zip(*points, strict=True))
    ax.set(title=stage.partition("-")[0], xlabel="step")
axes[0].set_ylabel("loss, in nats")
plt.show()

# %% [markdown]
# ## One user
#
# The prompt says nothing of the user: all that the decoder knows of them is the memory. Answers are
# chosen among all genres, or all films that the user has not seen, with these probabilities.

# %%
data = run.dataset
system = user_llm.System(run, "user_llm", params)
favorite, following = stages.tasks(run)
targets = run.split.test[:400]  # users' last events; what came before is the history
one = targets[[12]]


def called(item):
    return f"{data.items.titles[item]} ({', '.join(data.items.genres[item])})"


def ask(task, target):
    answers = system.answer(task, target)
    print(task.ask(np.arange(target[0]), target[0]).prompt)
    for choice, score in list(zip(answers.choices[0], answers.scores[0], strict=True))[:3]:
        print(f"    {np.exp(score):4.0%} {task.candidates()[choice]}")
    print(f"    right: {label(run, task, target[0])}\n")


history = np.arange(one[0] - 20, one[0])
print("the last six films", *map(called, data.item[history[-6:]]), sep="\n    ", end="\n\n")
ask(favorite, one)
ask(following, one)

# %% [markdown]
# ## What it looks at
#
# Which events does a cross-attention look at, and for which of the prompt's tokens? Each row is a
# token of the question, each column an event, by its genres; the stronger the colour, the larger
# the event's share, and a row is 1 in sum. Events of the genre that is right have orange names.
# The answer is read off the last row.

# %%
examples = stages.examples(run, "user_llm", one, asked={favorite: 1.0})
batch = examples.batch(np.array([0]), np.array([0]))
attention = np.asarray(system.attention(system.params, batch))[:, 0]  # [layers, tokens, events]
(tokens,) = examples.prompts([(favorite, one[0])])[1]

words = ["start", *(repr(run.tokenizer.decode([token])) for token in tokens[1:])]
right = label(run, favorite, one[0])
films = [data.items.genres[item] for item in data.item[history]]
ink = LinearSegmentedColormap.from_list("ink", ["#3b82d000", "#3b82d0"])  # from no colour at all
fig, axes = plt.subplots(2, 1, figsize=(9, 5.4), sharex=True)
for nth, ax in enumerate(axes):
    shares = attention[nth, : len(tokens), :20]
    picture = ax.imshow(shares, cmap=ink, norm=PowerNorm(0.5, 0), aspect="auto")
    ax.set_yticks(range(len(tokens)), words)
    ax.set(title=f"layer {nth + 1}")
    ax.grid(False)
    fig.colorbar(picture)
axes[1].set_xticks(range(20), ["\n".join(genres) for genres in films], rotation=90)
for name, genres in zip(axes[1].get_xticklabels(), films, strict=True):
    name.set_color("C1" if right in genres else "C7")
plt.show()

# %% [markdown]
# ## The answer follows the memory
#
# Now the same question, word for word, with the memories of several users, and below with each
# user's memory replaced by that of another.

# %%
some, others = targets[10:16], targets[210:216]
own, swapped = system.answer(favorite, some), system.answer(favorite, some, others)
print(f"{'user':8}{'right':12}{'answer':12}{'of whose memory':18}{'their right':14}answer")
for nth, (mine, other) in enumerate(zip(some, others, strict=True)):
    whose = data.users[timelines.user_of(other, data.offsets)]
    print(
        f"{data.users[timelines.user_of(mine, data.offsets)]:8}"
        f"{label(run, favorite, mine):12}{own.texts[nth]:12}"
        f"{whose:18}{label(run, favorite, other):14}{swapped.texts[nth]}"
    )

# %% [markdown]
# Of four hundred users, how often the answer is right of the user who is asked about, and of the
# one whose memory is read:

# %%
strangers = np.roll(targets, 200)
labels = np.array([label(run, favorite, target) for target in targets])
theirs = np.roll(labels, 200)
answers = np.array(system.answer(favorite, targets).texts)
moved = np.array(system.answer(favorite, targets, strangers).texts)

shares = {
    "own memory, own favorite": (answers == labels).mean(),
    "another's memory, own favorite": (moved == labels).mean(),
    "another's memory, their favorite": (moved == theirs).mean(),
}
fig, ax = plt.subplots(figsize=(7, 1.8))
bars = ax.barh(list(shares), list(shares.values()), color=["C0", "C7", "C1"])
ax.bar_label(bars, fmt="%.2f", padding=4)
ax.set(xlim=(0, 1), title="right answers")
ax.invert_yaxis()
plt.show()

# %% [markdown]
# The same of next films, by how often the film is among the first ten of the answers:

# %%
for whose, users in (("own", None), ("another's", strangers)):
    found = judge(run, "next_item", following, targets, system.answer(following, targets, users))
    print(f"{whose:10} memory: recall@10 {found['test/next_item/recall_at_10']:.2f}")

# %% [markdown]
# ## How far the gates have opened
#
# Each cross-attention adds to a layer's output what it has read, times the tanh of a gate. At 0 the
# decoder would be as if it knew nobody. Here they began wide open, at 0.9, which learns faster than
# from a gap. Closing them by hand shows what passes through.

# %%
gates = np.tanh(np.asarray(params["decoder"]["cross"]["gate"]))
print("tanh of the gates, layer by layer:", *gates.round(2))


def closed(share):
    gate = np.arctanh(gates * share)
    cross = {**params["decoder"]["cross"], "gate": gate}
    return {**params, "decoder": {**params["decoder"], "cross": cross}}


found = {1.0: answers}
for share in (0.5, 0.25, 0.0):
    less = user_llm.System(run, "user_llm", closed(share))
    found[share] = np.array(less.answer(favorite, targets).texts)
fig, ax = plt.subplots(figsize=(6, 2.4))
ax.plot(list(found), [(texts == labels).mean() for texts in found.values()], "o-")
ax.set(ylim=(0, 1), xlabel="share of the gates that is left", title="right favorite genres")
plt.show()
