"""The benchmark of training: all sides do the same work, and say what it cost."""

import json
import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_made import UNTIED
from products_traced import products

from user_llm import benchmarks
from user_llm.config import SystemConfig
from user_llm.evaluation import flops, records, training_benchmark, training_side
from user_llm.evaluation.decode_benchmark import write_random
from user_llm.evaluation.inference_subject import published, random_events
from user_llm.evaluation.peers.training import Training, tokens
from user_llm.evaluation.training_benchmark import ALONE, ENCODED, GIVEN, READS, SIDES, THEIRS
from user_llm.models.user_llm import UserLLM
from user_llm.training import losses

WORK = Training("", UNTIED.vocab_size, batch=2, length=12, events=6, warmup=1, steps=4)


@pytest.mark.slow
def test_all_sides_are_timed_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(training_benchmark.DECODERS, "tiny", UNTIED)
    sizes = {"batch": 2, "length": 12, "events": 6, "steps": 2}
    result = training_benchmark.benchmark(tmp_path, decoders=["tiny"], rounds=1, **sizes)
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == result["rows"]
    rows = {row["side"]: row for row in result["rows"]}
    assert tuple(rows) == SIDES
    for row in rows.values():
        assert row["seconds"] > 0 and all(map(math.isfinite, row["losses"]))
        assert row["memory"] > 0 or sys.platform != "linux"
    # Not only the first losses: the weights, moved by each side's own AdamW, are alike.
    assert rows[ALONE]["losses"] == pytest.approx(rows[THEIRS]["losses"], abs=1e-4)
    assert rows[ALONE]["losses"] != pytest.approx(rows[GIVEN]["losses"], abs=1e-3)
    sizes = [rows[side]["parameters"] for side in (THEIRS, ALONE, GIVEN, ENCODED)]
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3]
    text = training_benchmark.table(result)
    assert "× peer" in text and "cross-attention:" in text and "wanted" in text
    benchmarks.keep(result, training_benchmark.metrics(result), tmp_path / "kept", 1.0)
    kept = {record.run: record.metrics for record in records.read(tmp_path / "kept")}
    assert list(kept) == [f"training/tiny/{side}" for side in SIDES]
    times = rows[THEIRS]["seconds"] / rows[GIVEN]["seconds"]
    assert kept[f"training/tiny/{GIVEN}"]["crossed_times_the_peer"] == pytest.approx(times)


def made(side):
    """A system as its side trains it, and a batch, both without values."""
    shape = published(UNTIED)
    system = shape.system if READS[side] else SystemConfig(streams=())
    kind = training_side.Given if side == GIVEN else UserLLM
    parts = (system, UNTIED, shape.encoder, shape.features)
    model = nnx.eval_shape(lambda: kind(*parts, rngs=nnx.Rngs(0)))
    batch = {"tokens": tokens(WORK, 0), "weights": np.ones((WORK.batch, WORK.length), np.float32)}
    if side == GIVEN:
        size = (WORK.batch, shape.memory_tokens(WORK.events), 2 * shape.encoder.embed)
        batch["memory"] = np.ones(size, np.float32)
    elif side == ENCODED:
        batch |= random_events(shape.features, WORK.batch, WORK.events)
    return nnx.split(model), jax.tree.map(jnp.asarray, batch)


def test_operations_are_those_of_what_is_traced():
    counted = training_benchmark.operations(UNTIED, WORK)
    assert counted[THEIRS] == counted[ALONE]
    forward = {}
    for side in (ALONE, GIVEN, ENCODED):
        (graphdef, state), batch = made(side)

        def loss(state, graphdef=graphdef, batch=batch):
            return losses.answer(nnx.merge(graphdef, state), batch, jax.random.key(0))[0]

        forward[side] = products(loss, state)
        # A step multiplies twice as much again for its gradients, and the layers once more.
        assert 3 <= products(jax.grad(loss), state) / forward[side] <= 4
    length, rows = WORK.length, WORK.batch
    unseen = 2 * 4 * 4 * 8 * (length**2 - flops.pairs(length)) * rows
    assert counted[ALONE] == 3 * (forward[ALONE] - unseen)
    assert counted[GIVEN] - counted[ALONE] == 3 * (forward[GIVEN] - forward[ALONE])
    events, shape = WORK.events, published(UNTIED)
    # Encoded, events meet later ones in vain too, and their embeddings are made twice.
    unseen = 6 * 4 * 128 * (events**2 - flops.pairs(events)) * rows
    unseen += flops.embedding(shape.encoder, shape.features, events) * rows
    assert counted[ENCODED] - counted[GIVEN] == 3 * (forward[ENCODED] - forward[GIVEN] - unseen)


def test_our_side_trains_what_it_reads(tmp_path, mesh):
    write_random(tmp_path, UNTIED, "float32")
    found = {}
    for reads in ("", "given"):
        work = Training(**(vars(WORK) | {"folder": str(tmp_path), "reads": reads}))
        train, parameters = training_side.trainer(work, mesh())
        found[reads] = [train(tokens(work, nth)) for nth in range(5)], parameters
    (alone, weights), (given, more) = found.values()
    assert alone[0] == pytest.approx(math.log(UNTIED.vocab_size), abs=0.1)
    assert alone[-1] < alone[0] and given[-1] < given[0] and given[0] != alone[0]
    # Projector, then a cross-attention behind the last of two layers.
    projector = 256 + 256 * 32 + 32 * 32
    assert more - weights == projector + 2 * 32 * 32 + 2 * 32 * 16 + 32 + 1


def test_shares_are_of_the_step_with_a_user():
    seconds = {ALONE: 0.9, GIVEN: 1.0, ENCODED: 2.0, THEIRS: 1.8}
    counted = {ALONE: 95, GIVEN: 100, ENCODED: 400, THEIRS: 95}
    rows = [
        {"side": side, "seconds": seconds[side], "flops": counted[side], "losses": [1.0, 2.0, 3.0]}
        for side in SIDES
    ]
    found = training_benchmark.judged(rows)
    near = partial(pytest.approx, rel=1e-9)
    assert found["times_the_peer"] == near(2) and found["crossed_times_the_peer"] == near(1.8)
    assert found["cross_attention/share_of_operations"] == near(0.05)
    assert found["cross_attention/share_of_time"] == near(0.1)
    assert found["encoder/share_of_operations"] == near(0.75)
    assert found["encoder/share_of_time"] == near(0.5)


def test_sides_that_train_otherwise_are_not_compared(monkeypatch):
    def run(module, work):
        steps = range(work.warmup + work.steps)
        losses = [5.0 - (0.1 if "transformers" in module and step == 2 else 0) for step in steps]
        return {"losses": losses, "seconds": [1.0], "memory": 1, "parameters": 1}

    monkeypatch.setattr(training_benchmark.sides, "run", run)
    with pytest.raises(ValueError, match="do not train alike: our losses are .5.0, 5.0, 5.0., "):
        training_benchmark.compare("tiny", UNTIED, WORK, 1)
