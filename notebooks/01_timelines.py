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
# # Timelines, and a schema for your own
#
# A *timeline* is what one user did, event by event, in the order of time. A *schema* says what is
# known of an event. This notebook looks at the embedded world, builds a data set from a table of
# its own, and follows the events to the batch that an encoder is trained on.

# %%
import logging
import os
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["TQDM_DISABLE"] = "1"  # no progress bars
warnings.filterwarnings("ignore", "IProgress")  # nor advice on more of them
logging.getLogger("user_llm").setLevel(logging.ERROR)  # `describe` tells of repairs, too

import matplotlib.pyplot as plt
import numpy as np

import user_llm
from user_llm.config import DataConfig
from user_llm.data import inspect, timelines
from user_llm.sources import split

plt.style.use("user_llm.notebook")
temporary = TemporaryDirectory()
os.chdir(temporary.name)  # all files go there

# %% [markdown]
# ## The embedded world
#
# Nothing is downloaded: the world's users watch, rate and review films as their tastes drift.
# `build` writes a data set to a folder, and returns the folder at once when it is there already.

# %%
folder = user_llm.build("world", data_dir=Path("datasets"), users=300)
print(inspect.describe(folder))

# %% [markdown]
# `load` reads it into memory: all events in one order, by user and then by time, and each user as
# a range of them.

# %%
world = user_llm.load(folder)
start, stop = world.offsets[0], world.offsets[1]
print(f"user {world.users[0]}: events {start} to {stop}, the first three of them")
for event in range(start, start + 3):
    item = world.item[event]
    print(f"  item {item} = {world.items.ids[item]}: {world.items.titles[item]}")
    print(f"    at {world.times[event]} s, {world.ratings[event]:.0f} stars: {world.review(event)}")

# %% [markdown]
# Tastes drift. Each dot below is a film, in the row of its first genre, and the larger the more
# stars it got.

# %%
genres = sorted({genres[0] for genres in world.items.genres if genres})
fig, axes = plt.subplots(1, 3, sharey=True, figsize=(9, 3.6))
for user, ax in enumerate(axes):
    own = slice(world.offsets[user], world.offsets[user + 1])
    when = world.times[own].astype("datetime64[s]")
    rows = [genres.index(world.items.genres[item][0]) for item in world.item[own]]
    ax.scatter(when, rows, s=6 * world.ratings[own] ** 1.5, color=f"C{user}", alpha=0.7, lw=0)
    ax.set(title=f"user {world.users[user]}, {len(rows)} events")
axes[0].set_yticks(range(len(genres)), genres)
plt.show()

# %% [markdown]
# ## A table of your own
#
# Two tables and a schema in one folder. The columns are called whatever they are called; `columns`
# says what they are. Here is a coffee bar's till.

# %%
bar = Path("bar")
bar.mkdir()
(bar / "events.csv").write_text("""\
guest,drink,at,cup,price
ann,espresso,2026-03-02T08:05,small,1.80
ann,cortado,2026-03-02T12:40,small,2.60
bob,mocha,2026-03-02T09:10,large,4.20
ann,espresso,2026-03-03T08:02,small,1.80
bob,mocha,2026-03-04T09:15,large,4.20
bob,chai,2026-03-03T16:30,large,
cid,chai,2026-03-03T17:00,small,3.10
cid,filter,2026-03-05T08:45,large,2.20
cid,filter,2026-03-05T08:45,large,2.20
ann,filter,2026-03-05T08:01,large,2.20
""")
(bar / "items.csv").write_text("""\
drink,title,genres
espresso,Espresso,coffee
cortado,Cortado,coffee|milk
mocha,Mocha,coffee|milk|sweet
chai,Chai latte,tea|milk|sweet
filter,Filter coffee,coffee
""")
(bar / "schema.json").write_text("""
{"columns": {"user": "guest", "item": "drink", "timestamp": "at"},
 "features": [{"kind": "categorical", "name": "item"},
              {"kind": "categorical", "name": "cup"},
              {"kind": "numeric", "name": "price"},
              {"kind": "time", "name": "time"},
              {"kind": "bag", "name": "genres", "of": "item"}],
 "predicted": ["item", "cup"]}
""")
folder = user_llm.build("table", source=bar, data_dir=Path("datasets"))
print(inspect.describe(folder))

# %% [markdown]
# What had to be mended stands in the notes: Bob's visits were not in time order, and Cid's last
# one was there twice.
#
# Values become numbers by a *vocabulary*, which is learnt from the table. Everywhere 0 is a
# missing value, 1 one that the vocabulary does not know, and the known ones follow in their order.
# Numbers are standardised, with a flag that says whether there is one.

# %%
till = user_llm.load(folder)
for name in ("item", "cup", "genres"):
    print(f"{name}: {dict(enumerate(till.vocabularies[name].values, start=2))}")
price = till.vocabularies["price"]
print(f"price: mean {price.mean:.2f}, scale {price.scale:.2f}\n")
user = till.users.index("bob")
for event in range(till.offsets[user], till.offsets[user + 1]):
    read = till.gather(np.array(event))
    print("bob", *(f"{name}={np.array_str(value, precision=2)}" for name, value in read.items()))

# %% [markdown]
# `time` has three numbers: of the time since the event before, of the hour, and of the weekday. Of
# an event the encoder learns to foretell what is `predicted`; all of it, it reads.
#
# ## What is refused
#
# Whatever does not fit is told by feature, user and row, before anything is built.


# %%
def tried(name, text):
    was = (bar / name).read_text()
    (bar / name).write_text(text(was))
    try:
        user_llm.build("table", source=bar, data_dir=Path("datasets"))
    except ValueError as error:
        print(error, end="\n\n")
    (bar / name).write_text(was)


tried("events.csv", lambda rows: rows.replace("4.20", "four").replace("2026-03-05T08:01", "noon"))
tried("events.csv", lambda rows: rows.replace("guest", "customer"))
tried("items.csv", lambda rows: rows.replace("\nfilter", "\nfilter,by hand"))
tried("schema.json", lambda schema: schema.replace('"predicted": ["item"', '"predicted": ["price"'))

# %% [markdown]
# A config reads such a folder by `DataConfig(name="table", source="/path/to/bar")`; from there on
# everything is as in the notebooks that follow.
#
# ## What trains, and what is asked
#
# By default each user's last event is the test and the one before it the validation. `by_time`
# cuts all timelines at the same two moments instead and asks for the first event after each.

# %%
last, by_time = (
    split(DataConfig(protocol=protocol), world) for protocol in ("stable_leave_one_out", "by_time")
)
fig, axes = plt.subplots(1, 2, sharey=True, figsize=(9, 3.4))
users = 30
owner = timelines.user_of(np.arange(world.offsets[users]), world.offsets)
for ax, parts, title in zip(axes, (last, by_time), ("leave one out", "by time"), strict=True):
    when = world.times.astype("datetime64[s]")
    ax.plot(when[: len(owner)], owner, ".", color="C7", ms=2, label="left out")
    train = timelines.training_events(parts, world.offsets)
    for name, events, style in (
        ("training", train, {"color": "C0", "ms": 3}),
        ("validation", parts.validation, {"color": "C1", "ms": 7}),
        ("test", parts.test, {"color": "C2", "ms": 7}),
    ):
        shown = events[events < len(owner)]
        ax.plot(when[shown], owner[shown], ".", label=name, **style)
    ax.set(title=title, yticks=[])
axes[0].set_ylabel("users")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# ## A batch
#
# An encoder reads rows of a fixed length, and timelines are short, so several of them are packed
# into a row. The *segments* say whose event is whose; nobody's attention leaves their own, and the
# rest of a row is empty.

# %%
size = 200
windows = timelines.windows(world.offsets[:-1], last.train_stop, size)
starts, lengths = timelines.pack(windows, size)
filled = lengths.sum() / (size * len(starts))
print(f"{len(windows)} timelines in {len(starts)} rows, {filled:.1%} filled")

rows = np.random.default_rng(0).permutation(len(starts))[:12]
events, segments = timelines.spread(starts[rows], lengths[rows], size)
for name, values in {**world.gather(events), "segments": segments}.items():
    print(f"  {name:8} {values.dtype} {list(values.shape)}")

# %%
fig, ax = plt.subplots(figsize=(9, 3))
for row, own in enumerate(lengths[rows]):
    own = own[own > 0]
    ax.barh(row, own - 1, left=np.cumsum(own) - own, color=[f"C{nth}" for nth in range(len(own))])
ax.set(title="twelve rows, and the users in each", xlabel="place in the row", yticks=[])
plt.show()
