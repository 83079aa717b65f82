"""All stages of a tiny run, from the world to the report, for every fusion and strategy."""

import json
import math
import shutil
from collections import Counter

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util
from runs_made import EXPERIMENT, held_out_run

from user_llm import stages
from user_llm.config import (
    CrossAttentionConfig,
    DecoderConfig,
    FinetuneConfig,
    LanguageModelConfig,
    LoRAConfig,
    MeshConfig,
    PretrainConfig,
    WarmupConfig,
)
from user_llm.data.features import KNOWN
from user_llm.data.tasks import NextItem
from user_llm.evaluation import report
from user_llm.evaluation.evaluate import evaluate
from user_llm.evaluation.system import System
from user_llm.inference.next_item import seen_items
from user_llm.runs import Run
from user_llm.training import tracking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TASKS = {"next_item": 0.4, "favorite_category": 0.3, "review_generation": 0.3}
NEXT = {"next_item": 1.0}
LORA = {"lora": LoRAConfig(rank=2)}
ALWAYS = {"oracle", "popularity", "encoder", "user_llm"}


def experiment(system=None, *, baselines=(), tasks=TASKS, mesh=MeshConfig()):
    parts = {
        "system": system or {},
        "evaluation": {"baselines": baselines},
        "finetune": {"tasks": tasks},
        "pretrain": {"steps": 3, "validate_every": 2},
    }
    changed = {
        name: getattr(EXPERIMENT, name).model_copy(update=update) for name, update in parts.items()
    }
    return EXPERIMENT.model_copy(update=changed | {"mesh": mesh})


@pytest.fixture(scope="module")
def base(tmp_path_factory, mesh):
    """A run that is pre-trained and warmed up, on one device."""
    folder = tmp_path_factory.mktemp("base")
    run = Run(experiment(), folder / "run", folder / "data")
    run.mesh = mesh()
    stages.pretrain(run)
    stages.warmup(run)
    return run


@pytest.fixture
def start(base, tmp_path, mesh):
    """Makes runs that go on from there, on one device unless the experiment says otherwise."""

    def start(of) -> Run:
        for part in ("pretrain", "warmup", "tokenizer"):
            if not (tmp_path / part).exists():
                shutil.copytree(base.folder / part, tmp_path / part)
        run = Run(of, tmp_path, base.data_dir)
        if of.mesh == MeshConfig():
            run.mesh = mesh()
        return run

    return start


def flat(tree):
    named = traverse_util.flatten_dict(tree, sep=".")
    return {name: np.asarray(value) for name, value in named.items()}


def same(tree, other):
    """Of the leaves that both have, whether each is the same, bit by bit."""
    a, b = flat(tree), flat(other)
    assert a.keys() & b.keys()
    return [a[name].tobytes() == b[name].tobytes() for name in a.keys() & b.keys()]


@pytest.mark.parametrize(
    ("system", "tasks", "baselines", "shape"),
    [
        (
            {"strategy": "full"},
            NEXT,
            ("no_context", "text_prompt", "shuffled_memory"),
            MeshConfig(data=2, fsdp=2, tensor=2),
        ),
        ({"fusion": "soft_prompt", "strategy": "encoder"}, TASKS, (), MeshConfig()),
        ({"strategy": "lora", **LORA}, NEXT, (), MeshConfig()),
        ({"fusion": "soft_prompt", "strategy": "projection"}, NEXT, (), MeshConfig()),
        (
            {"strategy": "encoder", "item_tokens": True},
            TASKS,
            ("no_context", "shuffled_memory"),
            MeshConfig(),
        ),
        (
            {"fusion": "none", "strategy": "encoder", "item_tokens": True, "text_history": 2},
            NEXT,
            (),
            MeshConfig(),
        ),
    ],
    ids=[
        "cross_attention-full",
        "soft_prompt-encoder",
        "cross_attention-lora",
        "projection",
        "item_tokens-encoder",
        "item_tokens-none",
    ],
)
def test_a_run_ends_in_a_table_and_a_report(system, tasks, baselines, shape, start):
    run = start(experiment(system, baselines=baselines, tasks=tasks, mesh=shape))
    result = evaluate(run)
    assert json.loads((run.folder / "evaluation.json").read_text()) == result
    rows = {row["system"]: row["metrics"] for row in result["rows"]}
    assert rows.keys() == ALWAYS | set(baselines)
    for name in {"user_llm", *baselines}:
        assert {metric.split("/")[1] for metric in rows[name]} == tasks.keys()
        assert all(math.isfinite(value) for value in rows[name].values())
    check_costs(result["rows"])
    page = report.write(run.folder)
    assert all(f">{report.words(name)}<" in page.read_text() for name in rows)
    check_frozen(run, system["strategy"])


def test_an_item_that_is_a_token_is_scored_among_all_tokens(start, monkeypatch):
    run = start(experiment({"item_tokens": True}, tasks=NEXT))
    system, targets = System(run, "user_llm", stages.finetune(run)), run.split.test[:4]
    task, rows = NextItem(run.dataset), np.arange(4)
    answers = system.answer(task, targets)
    assert answers.choices is not None and answers.scores is not None
    examples = stages.examples(run, "user_llm", targets)
    prompts = [examples.question(task, target).prompt for target in targets.tolist()]
    tokens = np.array(run.tokenizer.prompts(prompts), np.int32)
    model = run.make_model(run.systems["user_llm"])
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0))))
    batch = examples.timelines(rows) | {"tokens": tokens}
    read = jax.jit(lambda params, batch: nnx.merge(graphdef, params)(batch))
    logits = np.asarray(read(system.params, batch), np.float64)[:, -1]
    words = run.decoder_config.vocab_size
    assert logits.shape[1] == words + len(run.dataset.items.ids)
    likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    likely = likely[:, words + KNOWN :]
    for row, seen in enumerate(seen_items(run.dataset, targets)[:, KNOWN:]):
        best = np.argsort(-np.where(seen, -np.inf, likely[row]), kind="stable")[:3]
        assert answers.choices[row].tolist() == best.tolist()
        np.testing.assert_allclose(answers.scores[row], likely[row, best], rtol=1e-4)
    monkeypatch.setattr("user_llm.evaluation.system.PROMPTS", 1)  # tokens: one user at a time
    alone = system.answer(task, targets)
    np.testing.assert_array_equal(alone.choices, answers.choices)
    np.testing.assert_allclose(alone.scores, answers.scores, atol=1e-5)


def check_costs(rows):
    """A memory costs more than to know nothing, and less than the same history in words."""
    costs = {row["system"]: row["cost"] for row in rows if "cost" in row}
    assert "user_llm" in costs and "shuffled_memory" not in costs
    assert all(value > 0 for own in costs.values() for value in own.values())
    if "text_prompt" in costs:
        ours, plain, told = (costs[name] for name in ("user_llm", "no_context", "text_prompt"))
        assert ours["cost/prompt_tokens"] == plain["cost/prompt_tokens"]
        assert told["cost/prompt_tokens"] > 2 * plain["cost/prompt_tokens"]
        assert min(ours["cost/gflop"], told["cost/gflop"]) > plain["cost/gflop"]


def check_frozen(run, strategy):
    """What the strategy leaves alone is, bit by bit, as the stages before left it."""
    aligned = stages.align(run)
    assert all(same(aligned["streams"]["timeline"]["encoder"], stages.encoder(run)))
    assert all(same(aligned["decoder"], stages.warmup(run)["decoder"])) == (strategy != "full")
    found, decoder = stages.finetune(run), stages.warmup(run)["decoder"]
    encoder = found["streams"]["timeline"]["encoder"]
    assert all(same(encoder, stages.encoder(run))) == (strategy == "projection")
    assert all(same(found["decoder"], decoder)) == (strategy != "full")
    logged = tracking.read(run.folder / "finetune-user_llm")
    assert {row["step"] for row in logged} == {1, 2}


def test_a_read_decoder_stays_narrow_beside_what_is_trained(start, tmp_path, data_folder):
    narrow = DecoderConfig(dtype="bfloat16", param_dtype="bfloat16")
    folder = data_folder / "models" / "stories260K"
    model = LanguageModelConfig(weights=str(folder), architecture=narrow)
    system = {"strategy": "lora", "lora": LoRAConfig(rank=2, targets=("*",))}
    system["cross_attention"] = CrossAttentionConfig(every=1, heads=1)
    idle = {"warmup": WarmupConfig(steps=0), "language_model": model}
    run = start(experiment(system, tasks=NEXT).model_copy(update=idle))
    shutil.rmtree(tmp_path / "warmup")  # of another decoder
    run.check_language_model()
    rows = {row["system"]: row["metrics"] for row in evaluate(run)["rows"]}
    assert all(math.isfinite(value) for value in rows["user_llm"].values())
    found, read = flat(stages.finetune(run)["decoder"]), flat(stages.warmup(run)["decoder"])
    assert {x.dtype.name for x in read.values()} == {"bfloat16"}
    assert all(same(found, read))
    wide = {name for name, x in found.items() if x.dtype.name == "float32"}
    assert wide == found.keys() - read.keys()
    assert all(np.any(found[name]) for name in wide if name.endswith("lora_b"))


def test_a_warm_up_asks_as_often_as_told_and_calls_items_by_their_noun(tmp_path, mesh, monkeypatch):
    read = []
    monkeypatch.setattr(stages.pipeline, "Documents", lambda documents, _: read.append(documents))
    monkeypatch.setattr(stages, "batches", lambda *_: iter)
    monkeypatch.setattr(stages, "train", lambda *_: {})
    run = held_out_run(tmp_path, mesh())
    for noun, practice in (("film", 1), ("product", 3)):
        data = run.experiment.data.model_copy(update={"noun": noun})
        config = run.experiment.warmup.model_copy(update={"practice": practice})
        run.experiment = run.experiment.model_copy(update={"data": data, "warmup": config})
        stages.warmup(run)
    once, often = (Counter(map(run.tokenizer.decode, documents)) for documents in read)
    films = {text: n for text, n in once.items() if text.startswith("The next film:")}
    assert films and not any(text.startswith("The next film:") for text in often)
    assert all(often[text.replace("film", "product", 1)] == 3 * n for text, n in films.items())
    told = [text for text in once if not text.startswith("The ")]
    assert told and all(often[text] == once[text] for text in told)


def test_a_language_model_comes_from_another_run(base, start):
    model = base.experiment.language_model.model_copy(
        update={"from_run": str(base.folder), "held_out": 0.2}
    )
    alone = {"pretrain": PretrainConfig(steps=0), "finetune": FinetuneConfig(steps=0)}
    of = experiment({"streams": ()}).model_copy(
        update={"language_model": model, "warmup": WarmupConfig(steps=0), **alone}
    )
    run = Run(of, base.folder.parent / "other", base.data_dir)
    run.mesh = base.mesh
    run.check_language_model()
    assert all(same(stages.warmup(run)["decoder"], stages.warmup(base)["decoder"]))
    assert run.tokenizer.prompts(["The next film: x"]) == base.tokenizer.prompts(
        ["The next film: x"]
    )
    rows = {row["system"]: row["metrics"] for row in evaluate(run)["rows"]}
    assert rows.keys() == {"oracle", "popularity", "language_model"}
    assert 0 < rows["language_model"]["test/text/bits_per_byte"] < 9


def test_a_second_evaluation_trains_nothing_and_says_the_same(start, monkeypatch):
    of = experiment({"fusion": "soft_prompt"}, tasks=NEXT)
    first = evaluate(start(of))
    run = start(of)
    left = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.name != "evaluation.json"}
    monkeypatch.setattr("user_llm.training.step.make_train_step", lambda *_, **__: pytest.fail)
    again = evaluate(run)
    assert (again["rows"], again["users"]) == (first["rows"], first["users"])
    assert left == {p: p.stat().st_mtime_ns for p in left}
