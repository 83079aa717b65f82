"""The inference benchmark: who is asked, what is measured of them, and what is told of it."""

import dataclasses
import json
import math

import numpy as np
import pytest
from models_made import UNTIED
from runs_made import EXPERIMENT

from user_llm import benchmarks, stages
from user_llm.evaluation import (
    answer_costs,
    inference_benchmark,
    inference_side,
    inference_table,
    records,
)
from user_llm.evaluation.answer_costs import Shape, Sizes
from user_llm.evaluation.inference_benchmark import (
    COLD,
    TOGETHER,
    WARM,
    plan,
    refuse_differences,
    unfit,
)
from user_llm.evaluation.inference_subject import common_end, of_run, published, told
from user_llm.evaluation.peers.answering import best
from user_llm.runs import Run

SIZES = Sizes(history=200, question=32, told=2532, kept=2500, event=13)
BENCHMARK = {"rounds": 1, "repeats": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory, mesh):
    """A run of two systems that have learned next to nothing: what is asked is what they cost."""
    idle, short = {"steps": 0}, {"steps": 1, "validate_every": 0}
    parts = {"pretrain": short, "warmup": idle, "align": idle, "finetune": short}
    parts["evaluation"] = {"baselines": ("text_prompt",)}
    changed = {
        name: getattr(EXPERIMENT, name).model_copy(update=update) for name, update in parts.items()
    }
    made = Run(EXPERIMENT.model_copy(update=changed), tmp_path_factory.mktemp("run"))
    made.mesh = mesh()
    stages.finetune(made)
    stages.finetune(made, "text_prompt")
    return made


@pytest.mark.slow
def test_all_systems_are_timed_told_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(inference_benchmark.DECODERS, "tiny", UNTIED)
    monkeypatch.setattr(inference_benchmark, "TOGETHER", {2: COLD + WARM})
    asked = {"decoders": ("tiny", "llama3_1b"), "histories": (4,)}
    result = inference_benchmark.benchmark(tmp_path, **asked, **BENCHMARK)
    assert json.loads((tmp_path / "benchmark.json").read_text())["rows"] == result["rows"]
    rows = {(row["decoder"], row["system"]): row for row in result["rows"]}
    for system in ("user_llm", "user_llm, keys kept", "transformers, prefix kept"):
        figures = rows["tiny", system]["asked"]["1"].values()
        assert all(math.isfinite(x) and x > 0 for x in figures)
    assert rows["llama3_1b", "user_llm"]["asked"] == {}  # too large: by formula only
    assert ("llama3_1b", "transformers") not in rows
    assert set(rows["tiny", "no_context"]["asked"]) == {"1", "2"}
    assert rows["tiny", "text_prompt, prefix kept"]["event_seconds"] > 0
    text = inference_table.table(result)
    assert "by formula only" in text and "text's operations, × of user_llm, keys kept" in text
    assert "transformers, warm first token, × of user_llm, memory kept" in text
    figures = inference_table.metrics(result)
    benchmarks.keep(result, figures, tmp_path / "kept", 1.0)
    kept = {row.run: row.metrics for row in records.read(tmp_path / "kept")}
    cold = rows["tiny", "user_llm"]["asked"]["1"]["first"]
    assert kept["inference/tiny/user_llm"]["events_4/users_1/first_seconds"] == cold


def test_costs_are_drawn_by_history(tmp_path):
    sizes = [Sizes(h, 32, told=int(12.5 * h) + 32, kept=int(12.5 * h), event=13) for h in (50, 200)]
    rows = [
        {"decoder": "100m", **row} for size in sizes for row in answer_costs.rows(shape(), size)
    ]
    inference_table.draw({"decoders": [{"decoder": "100m"}], "rows": rows}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept_100m.svg"]  # nothing was timed
    assert "keys kept" in (tmp_path / "kept_100m.svg").read_text()


@pytest.mark.slow
def test_of_a_run_the_text_is_what_its_data_set_says(run, tmp_path):
    long = run.experiment.encoder.window  # which the decoder has no room for as text
    result = inference_benchmark.benchmark(tmp_path, run=run, histories=(2, long), **BENCHMARK)
    assert {row["history"] for row in result["rows"] if row["asked"]} == {2, long}
    assert [model["decoder"] for model in result["decoders"]] == ["tiny"]
    ours, text = (
        next(r for r in result["rows"] if r["system"] == name and r["history"] == 2)
        for name in ("user_llm", "transformers")
    )
    assert text["prompt_tokens"] > ours["prompt_tokens"] and text["asked"]["1"]["first"] > 0


@pytest.mark.slow
def test_answers_are_the_same_from_what_is_kept(run):
    subject = of_run(run, (2,))
    systems = {
        "memory": ("user_llm", "user_llm, memory kept", "user_llm, keys kept"),
        "text": ("text_prompt", "text_prompt, prefix kept"),
    }
    for kind, names in systems.items():
        starts = inference_side.starts(subject, 2, 3, names, tokens=5)
        answers = [list(starts[name]()) for name in names for _ in range(2)]
        assert all(answer == answers[0] for answer in answers), kind
        assert np.shape(answers[0]) == (5, 3)


@pytest.mark.slow
def test_histories_that_no_user_has_or_no_decoder_has_room_for_are_left_out(run):
    long = run.experiment.encoder.window
    prompts = of_run(run, (2, long, long + 1)).prompts
    assert set(prompts) == {2, long} and prompts[2].told and prompts[long].told is None


@pytest.mark.slow
def test_first_tokens_need_no_other_process(run):
    result = inference_benchmark.first_tokens(run, (2, 10))
    systems = {(row["history"], row["system"]) for row in result["rows"]}
    ours = {(events, name) for events in (2, 10) for name in ("user_llm", "user_llm, memory kept")}
    assert systems == {*ours, (2, "text_prompt")}  # there is no room for ten events' text
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert "× text" in inference_table.first_table(result)


def shape():
    return published(inference_benchmark.DECODERS["100m"])


def test_shape_survives_json():
    assert Shape.of(json.loads(json.dumps(shape().described()))) == shape()


def test_items_are_said_by_who_reads_a_memory_alone():
    plain, sizes = shape(), SIZES
    wide = dataclasses.replace(plain, items=1000)
    more = 2 * 1000 * plain.decoder.hidden_size
    before, after = (
        {row["system"]: row for row in answer_costs.rows(one, sizes)} for one in (plain, wide)
    )
    for system, row in before.items():
        told = system.startswith("text")
        assert after[system]["flops"] == row["flops"] + (0 if told else more)
        assert after[system]["step_flops"] == row["step_flops"] + (0 if told else more)


@pytest.mark.parametrize("change", [{"streams": ()}, {"text_history": 3}, {"text_summary": True}])
def test_a_run_that_reads_no_memory_alone_is_refused(tmp_path, change):
    system = EXPERIMENT.system.model_copy(update=change)
    run = Run(EXPERIMENT.model_copy(update={"system": system}), tmp_path)
    with pytest.raises(ValueError, match="does not read a memory alone"):
        inference_benchmark.benchmark(tmp_path, run=run)


def test_texts_are_as_long_as_the_published():
    asked = told(4096, 200)
    assert (len(asked.tokens), asked.kept, asked.event) == (2532, 2500, 13)


def test_those_who_need_too_much_are_left_out_with_a_reason():
    free = {"free_bytes": 1e12, "flops_per_second": 1e15}
    asked, left_out = plan(shape(), [SIZES], free)
    assert not left_out and {batch for _, batch, _ in asked} == {1, *TOGETHER}
    short, slow = free | {"free_bytes": 1e10}, free | {"flops_per_second": 1e11}
    assert "needs" in unfit(shape(), SIZES, False, 64, short)
    assert "would take" in unfit(shape(), SIZES, True, 32, slow)
    assert not unfit(shape(), SIZES, True, 1, slow)
    _, left_out = plan(shape(), [SIZES], short)
    assert ("text_prompt, prefix kept", 200, 64) in left_out
    assert not any(system.startswith("user_llm") for system, _, _ in left_out)


def test_without_room_for_a_text_the_memory_stands_alone():
    far = Sizes(history=9000, question=32, told=None, kept=0, event=0)
    (_, _, systems), *_ = plan(shape(), [far], {"free_bytes": 0.0, "flops_per_second": 1.0})[0]
    assert systems and all(s.startswith(("user_llm", "no_context")) for s in systems)


def test_answers_that_begin_otherwise_are_refused():
    same = [{"tokens": [3, 3]}]
    refuse_differences({("text_prompt", 4, 2): same, ("transformers", 4, 1): same})
    refuse_differences({("text_prompt", 4, 2): same, ("user_llm", 4, 1): [{"tokens": [4]}]})
    with pytest.raises(ValueError, match=r"begin otherwise, by events: \{4: \{3, 5\}\}"):
        refuse_differences({("text_prompt", 4, 2): same, ("transformers", 4, 1): [{"tokens": [5]}]})


def test_a_run_s_own_decoder_is_no_choice(tmp_path):
    with pytest.raises(ValueError, match="has its own decoder"):
        benchmarks.inference(tmp_path, tmp_path, ["3m"], None, 1, None)


@pytest.mark.parametrize(
    "a, b, end", [([1, 2, 3], [9, 2, 3], 2), ([1, 2], [2, 1], 1), ([5, 6], [5, 6], 2)]
)
def test_common_end(a, b, end):
    assert common_end(a, b) == end


def test_the_best_of_what_was_timed_counts():
    calls = {"two": lambda: iter([[1], [2]]), "one": lambda: iter([[7]])}
    found = best(calls, repeats=2)
    assert {name: row["tokens"] for name, row in found.items()} == {"two": [1], "one": [7]}
    assert all(0 <= row["first"] < 1 and 0 <= row["further"] < 1 for row in found.values())
