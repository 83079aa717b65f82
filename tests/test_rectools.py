"""The comparison with RecTools: what its process is told, and what is made of its answers."""

import ast
import json
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from runs_made import EXPERIMENT

from user_llm import trained
from user_llm.config import MeshConfig
from user_llm.data.features import KNOWN
from user_llm.data.movielens_shape import Shape
from user_llm.evaluation import rectools
from user_llm.evaluation.peers.work import Work
from user_llm.inference.next_item import encoder_ranker
from user_llm.runs import Run
from user_llm.sharding import make_mesh

USERS = EXPERIMENT.data.users

# In the place of RecTools' Python: it recommends the item of the test to every third user, second.
PEER = """#!{python}
import json, sys
import numpy as np

asked = json.loads(sys.argv[2])
with np.load(asked["data"]) as data:
    wanted = data["item"][data["test"]]
    shown = np.split(data["item"], data["offsets"][1:-1])
    assert all(own[-1] == item for own, item in zip(shown, wanted))
answers = np.full((len(wanted), asked["best"]), -1)
answers[::3, 1] = wanted[::3]
np.savez(asked["answers"], answers=answers)
print("epoch 2: NDCG 0.1000, 3 s", file=sys.stderr)
print("a word of the library")
print(json.dumps({{"epoch": 2, "seconds": 4.0, "cpu_seconds": 8.0, "training_seconds": 9.0}}))
"""


def interpreter(tmp_path, text=PEER):
    path = tmp_path / "python"
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    made = Run(EXPERIMENT, tmp_path / "run", tmp_path / "datasets")
    made.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = nnx.to_pure_dict(nnx.state(made.make_encoder(rngs=nnx.Rngs(0))))
    monkeypatch.setattr(trained, "encoder", lambda run: params)
    return made


def test_both_sides_are_judged_on_the_same_users(run, tmp_path):
    result = rectools.compare(run, interpreter(tmp_path), epochs=1)
    assert json.loads((run.folder / "rectools.json").read_text()) == result
    assert result["asked"]["kind"] == "sasrec" and result["asked"]["every"] == 1
    ours, theirs = result["rows"]
    share = -(-USERS // 3) / USERS
    assert theirs["recall_at_10"] == pytest.approx(share)
    assert theirs["ndcg_at_10"] == pytest.approx(share / np.log2(3))
    ranker = encoder_ranker(run.make_encoder, run.dataset, run.split.test, mesh=run.mesh)
    hits = (ranker(trained.encoder(run)) <= 10).astype(float)
    assert ours["recall_at_10"] == pytest.approx(hits.mean())
    apart = hits - (np.arange(USERS) % 3 == 0)
    wanted = [apart.mean(), apart.std() / USERS**0.5]
    assert result["difference"]["recall_at_10"] == pytest.approx(wanted)
    assert min(ours["evaluation"].values()) > 0
    assert ours["seconds"] > 0 and ours["cpu_seconds"] > 0
    assert result["items"] == len(run.dataset.items.ids) - KNOWN
    text = rectools.table(result)
    assert "RecTools sasrec" in text and "epoch 2, 9 s" in text and "15         8" in text


def test_what_is_asked_is_what_the_process_takes(run, tmp_path):
    telling = "#!{python}\nimport json, sys\nraise SystemExit(','.join(json.loads(sys.argv[2])))"
    (taken,) = (
        node
        for node in ast.parse(rectools.PEER.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Asked"
    )
    names = {line.target.id for line in taken.body if isinstance(line, ast.AnnAssign)}
    with pytest.raises(ValueError, match=r"rectools_side.py failed:\n") as told:
        rectools.compare(run, interpreter(tmp_path, telling))
    assert set(str(told.value).splitlines()[-1].split(",")) == names


def test_evaluation_asks_both_for_the_last_event_of_everyone(tmp_path):
    shape = Shape(users=40, items=60, events=800, shortest=5, longest=50)
    work = Work("", shape.items, window=16, embed=8)
    ours, theirs = rectools.evaluation(interpreter(tmp_path), work, shape).values()
    assert min(ours[name] for name in rectools.SPENT) > 0
    assert [theirs[name] for name in rectools.SPENT] == [4, 8]


def test_ranks_are_places_in_the_answers():
    answers = np.array([[4, 5, -1], [7, 8, 9], [3, 2, 1]])
    assert rectools.ranks_of(answers, np.array([5, 6, 3])).tolist() == [2, 4, 1]


def test_what_cannot_be_compared_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"no such-python.*rectools\[torch\]"):
        rectools.compare(run, "no such-python")
    failing = interpreter(tmp_path, "#!{python}\nraise SystemExit('no module rectools')")
    with pytest.raises(ValueError, match=r"rectools_side.py failed:\s+no module rectools"):
        rectools.compare(run, failing)
    data = EXPERIMENT.data.model_copy(update={"held_out_users": 0.5})
    half = Run(EXPERIMENT.model_copy(update={"data": data}), tmp_path / "half", run.data_dir)
    with pytest.raises(ValueError, match="asks 30 of 60 users"):
        rectools.compare(half, "python")
    with pytest.raises(ValueError, match="--epochs 0 trains nothing"):
        rectools.compare(run, "python", epochs=0)
    run.dataset.item[run.split.test[0] - 1] = run.dataset.item[run.split.test[0]]
    with pytest.raises(ValueError, match="never recommends what a user has seen"):
        rectools.compare(run, "python")
