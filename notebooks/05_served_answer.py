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
# # From a checkpoint to a served answer
#
# A small system is trained, exported, checked and served; then a user's events come in by HTTP,
# and the answers change with them. Last, what it saves to keep a user's memory, where a plain
# language model reads the history as text at every question. The server needs `pip install
# 'user-llm[notebooks,serve]'`.

# %%
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["TQDM_DISABLE"] = "1"  # no progress bars
warnings.filterwarnings("ignore", "IProgress")  # nor advice on more of them

import matplotlib.pyplot as plt
import numpy as np

import user_llm
from user_llm import quickstart
from user_llm.config import DataConfig, EvaluationConfig, OptimConfig, PerceiverConfig
from user_llm.evaluation import answer_costs, inference_benchmark, inference_subject
from user_llm.evaluation.evaluate import label
from user_llm.models import zoo
from user_llm.serving.export import export
from user_llm.serving.served import Served, read_test

plt.style.use("user_llm.notebook")
temporary = TemporaryDirectory()
os.chdir(temporary.name)  # all files go there

# %% [markdown]
# ## A small system
#
# The quickstart's, cut down to half a minute: fewer users of the embedded world, and fewer steps.
# Of about every second user it learns to name the genre that most of the newest 20 films have;
# and hardly which film comes next, for which the quickstart takes its minutes.

# %%
config = quickstart.config()


def shortened(stage, steps, rate=3e-3, **changes):
    optim = OptimConfig(learning_rate=rate, schedule="cosine", warmup_steps=10)
    short = {"steps": steps, "optim": optim, "validate_every": 0}
    return stage.model_copy(update=short | changes)


tasks = {"favorite_category": 0.8, "next_item": 0.2}
decoder = config.language_model.architecture.model_copy(update={"max_position_embeddings": 2048})
perceiver = PerceiverConfig(latents=8, layers=1)
finetune = shortened(
    config.finetune, 250, 2e-3, batch_size=32, tasks=tasks, history=20, max_tokens=20
)
config = config.model_copy(
    update={
        "data": DataConfig(name="world", users=600),
        "language_model": config.language_model.model_copy(update={"architecture": decoder}),
        "system": config.system.model_copy(update={"perceiver": perceiver}),
        "pretrain": shortened(config.pretrain, 100),
        "warmup": shortened(config.warmup, 40),
        "align": shortened(config.align, 0),
        "finetune": finetune,
        "evaluation": EvaluationConfig(baselines=()),
    }
)
run = user_llm.Run(config, Path("runs/small"))
params = user_llm.finetune(run)  # and all stages before it

system = user_llm.System(run, "user_llm", params)
task = user_llm.TASKS["favorite_category"](run.dataset)
asked = run.split.test  # of every user the last event
answers = system.answer(task, asked).texts
right = [label(run, task, event) for event in asked]
print(f"favourite genre, {len(asked)} users: {np.mean(np.equal(answers, right)):.0%} right")

# %% [markdown]
# ## The export
#
# From here on neither the run nor its data set is needed: `decoder/` is a language model in
# Hugging Face's layout, and all else lies beside it.

# %%
films = Path("films")
export(run, films)
for path in sorted(path for path in films.rglob("*") if path.is_file()):
    print(f"{path.stat().st_size / 1000:8.1f} kB  {path.relative_to(films)}")

# %% [markdown]
# Loading checks every file's SHA-256, and asks the system what it was asked when it was exported.
# An export that has changed by a single bit is refused.

# %%
served = Served.load(films)
test = read_test(films)
for name, now in served.answered(test.events, test.prompt).items():
    print(f"self-test, {name} {now.shape}: differs by {np.abs(now - test.found[name]).max():.1g}")

weights = films / "user.safetensors"
whole = weights.read_bytes()
weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
try:
    Served.load(films)
except ValueError as error:
    print(f"refused: {error}")
_ = weights.write_bytes(whole)

# %% [markdown]
# ## The server
#
# `user-llm serve films` is a process of its own, here on a free port of this machine. With
# `--cold` it listens at once and compiles when it is first asked.

# %%
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "user_llm.cli", "serve", "films", "--cold", "--port", str(port)]
with Path("server.log").open("w") as log:
    server = subprocess.Popen(command, stdout=log, stderr=log)


def ask(path, body=None):
    """What the server answers, as Python has it."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("Content-Type", "application/json")
    sent = None if body is None else json.dumps(body).encode()
    return json.load(urllib.request.urlopen(request, sent, timeout=600))


while server.poll() is None:
    try:
        print(ask("/ready"))
        break
    except urllib.error.URLError:
        time.sleep(0.2)

# %% [markdown]
# ## A user
#
# The world's user whose first 20 films agree most in their genre becomes Ann, and these films are
# told of her. Then the language model is asked about her, and about somebody of whom nothing is
# known. Recommendations are the titles that it most probably says next.

# %%
data = run.dataset
kinds = dict(zip(data.items.ids, data.items.genres, strict=True))


def newest(items):
    """How many of the newest 20 items have each genre."""
    return Counter(genre for item in items[-20:] for genre in kinds[item])


def firsts(user):
    return [data.items.ids[item] for item in data.item[data.offsets[user] :][:20]]


told = max(map(firsts, range(len(data.users))), key=lambda items: max(newest(items).values()))


def tell(items, since):
    events = [{"item": item, "timestamp": since + 3600 * at} for at, item in enumerate(items)]
    return ask("/v1/users/ann/events", {"events": events})


def genre(user):
    question = {"role": "user", "content": "The favorite genre:"}
    body = {"model": "films", "user": user, "messages": [question], "temperature": 0}
    return ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]


def recommended(count):
    found = ask("/v1/recommendations", {"user": "ann", "k": count})["data"]
    return [f"{one['title']} ({', '.join(kinds[one['item']])})" for one in found]


print(tell(told, since=1_700_000_000))
print("favourite genre: ann's", genre("ann"), "| somebody's", genre("somebody"))
print("recommended:", "; ".join(recommended(3)))

# %% [markdown]
# Events come in, and the next answer knows. Ann turns to another genre, one film of it after the
# other; the server is asked after each. Lines show what the newest 20 films are, dots what it
# says.

# %%
first = newest(told).most_common(1)[0][0]
other = "western" if first != "western" else "comedy"
coming = [item for item, genres in kinds.items() if genres == (other,) and item not in told][:16]
counts, said = [newest(told)], [genre("ann")]
for nth, item in enumerate(coming, 1):
    tell([item], since=1_700_100_000 + 3600 * nth)
    counts.append(newest(told + coming[:nth]))
    said.append(genre("ann"))

shown = [first, other, *sorted(set(said) - {first, other})]
fig, ax = plt.subplots(figsize=(7, 3.2))
for color, name in enumerate(shown):
    ax.plot([count[name] for count in counts], color=f"C{color}", label=name)
    answered = [at for at, answer in enumerate(said) if answer == name]
    ax.scatter(answered, [22] * len(answered), color=f"C{color}", s=40)
ax.text(-0.5, 23.5, "“The favorite genre:”", color="C7")
ax.set(xlabel=f"{other} films added", ylabel="of the newest 20 films", yticks=range(0, 21, 5))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# What is told is kept in `films-users.sqlite`. SIGTERM ends what is under way first.

# %%
known = ask("/v1/users/ann")
print(known["told"], "events told, the newest:", known["events"][-1]["title"])
server.terminate()
print("stopped with", server.wait(60))

# %% [markdown]
# ## What is saved
#
# A language model that is told the history reads all of it at each question. One that has a
# memory reads the question; the memory is made when events come. Measured here, of this system
# and one user: `first_tokens` asks each for the first token of an answer, after as many events as
# the line says.

# %%
measured = inference_benchmark.first_tokens(run, (5, 20, 50, 80))["rows"]
names = {
    "text_prompt": ("the history as text", "C1"),
    "user_llm": ("memory, made anew", "C7"),
    "user_llm, memory kept": ("memory, kept", "C0"),
}


def draw(ax, rows, of, title):
    for system, (name, color) in names.items():
        own = [row for row in rows if row["system"] == system]
        ax.plot([r["history"] for r in own], [of(r) for r in own], ".-", color=color, label=name)
    ax.set(title=title, xlabel="events", ylim=(0, None))


fig, axes = plt.subplots(1, 3, figsize=(10, 3.2))
draw(axes[0], measured, lambda row: row["prompt_tokens"], "prompt, tokens")
draw(axes[1], measured, lambda row: 1e3 * row["seconds"], "first token, ms")
draw(axes[2], measured, lambda row: row["flops"] / 1e9, "first token, GFLOP")
axes[0].legend()
plt.show()

# %% [markdown]
# That is a decoder of 0.3 million parameters, which reads fast whatever it reads. The larger the
# decoder, the more there is to save, and the less it matters whether a memory is made anew. By
# formula, of the published encoder and Perceiver around Llama 3 8B, with 12.5 tokens to an event
# as text:

# %%
shape = inference_subject.published(zoo.decoder("llama3_8b"))
question = inference_subject.QUESTION
large = []
for events in (10, 25, 50, 100, 200, 400):
    told = int(inference_subject.EVENT * events)
    sizes = answer_costs.Sizes(events, question, told + question, told, event=13)
    large += answer_costs.rows(shape, sizes)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
draw(axes[0], large, lambda row: row["prompt_tokens"], "prompt, tokens")
draw(axes[1], large, lambda row: row["flops"] / 1e12, "first token, TFLOP")
axes[0].set(yscale="log", ylim=(10, 1e4))
axes[1].set(yscale="log", ylim=(0.1, 100))
axes[0].legend()
plt.show()
last = {row["system"]: row["flops"] for row in large if row["history"] == 400}
for system in ("user_llm", "user_llm, memory kept"):
    ratio = last["text_prompt"] / last[system]
    print(f"400 events: the history as text costs {ratio:.0f} times a {names[system][0]}")

# %% [markdown]
# `user-llm benchmark inference` measures the same beside transformers, `user-llm benchmark
# serving` a server with many who ask at once.
