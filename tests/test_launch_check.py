"""Steps compiled for TPUs that are not there: what they take, and what is said if that is much."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import jax
import pytest
from runs_made import EXPERIMENT
from test_flops import products

from user_llm import cli
from user_llm.config import (
    CrossAttentionConfig,
    DecoderConfig,
    FinetuneConfig,
    LanguageModelConfig,
    MeshConfig,
    SystemConfig,
)
from user_llm.evaluation import flops, records
from user_llm.launch import check, compiled, cost, memory, search
from user_llm.launch.cost import Time
from user_llm.launch.hlo import Instruction, Program
from user_llm.launch.report import Report, table
from user_llm.launch.topology import CHIPS, parse
from user_llm.models.zoo import decoder
from user_llm.runs import Run

GOLDEN = Path(__file__).parent / "golden"
# Wide enough for the kernels of TPUs, and for every axis of the mesh to split something.
DECODER = DecoderConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=128,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
SMALL = EXPERIMENT.model_copy(
    update={
        "language_model": LanguageModelConfig(architecture=DECODER),
        "system": SystemConfig(
            perceiver=EXPERIMENT.system.perceiver,
            cross_attention=CrossAttentionConfig(every=1, heads=2),
        ),
        "finetune": FinetuneConfig(steps=1, batch_size=8, history=8, max_tokens=256),
    }
)
LAYOUTS = {"fsdp": MeshConfig(data=1, fsdp=4), "tensor": MeshConfig(data=2, tensor=2)}
PLACE = "v5e:2x2"


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Where data sets are built, and with the optimizations that a real job would have."""
    patch = pytest.MonkeyPatch()
    patch.setattr(compiled, "DATASETS", tmp_path_factory.mktemp("datasets"))
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)  # as everywhere else in the tests
    patch.undo()


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    """Its name, and the reports of both stages, each beside what the compiler said of memory."""
    said, own = [], memory.Memory.of

    def noted(state, batch, compiled, kept):
        said.append(compiled.memory_analysis())
        return own(state, batch, compiled, kept)

    patch = pytest.MonkeyPatch()
    patch.setattr(memory.Memory, "of", noted)
    experiment = SMALL.model_copy(update={"mesh": LAYOUTS[request.param]})
    reports = list(compiled.check(experiment, parse(PLACE)))
    patch.undo()
    return request.param, {one.stage: (one, told) for one, told in zip(reports, said, strict=True)}


@pytest.mark.slow
def test_collectives_are_those_that_were_seen_before(layout):
    """As the libtpu of constraints.txt makes them; what another makes is to be looked at first."""
    name, found = layout
    wanted = json.loads((GOLDEN / "collectives.json").read_text())[name]
    seen = {
        stage: {kind: count for kind, (count, _) in report.collectives.items()}
        for stage, (report, _) in found.items()
    }
    assert seen == wanted


@pytest.mark.slow
def test_memory_by_kind_is_what_the_compiler_says_in_all(layout):
    _, found = layout
    for stage, (report, said) in found.items():
        assert report.memory.total == (
            said.argument_size_in_bytes
            + said.output_size_in_bytes
            - said.alias_size_in_bytes
            + said.temp_size_in_bytes
            + said.generated_code_size_in_bytes
        )
        assert all(size >= 0 for size in report.memory), (stage, report.memory)
        assert report.memory.optimizer == pytest.approx(2 * report.memory.parameters, rel=0.01)
        assert not report.problem and "fits" in table(report)
    tuned = found["finetune"][0]
    # The layers' inputs, kept for the way back, in bfloat16.
    rows = tuned.rows // (tuned.mesh["data"] * tuned.mesh["fsdp"])
    assert tuned.memory.activations >= 2 * rows * 256 * 256 * 2


@pytest.mark.slow
def test_time_is_told_and_recorded(layout, tmp_path):
    _, found = layout
    report = found["finetune"][0]
    assert 0 < report.utilisation < 1
    assert report.rate == pytest.approx(8 * 256 / report.time.total)
    (tmp_path / "tiny.py").touch()
    check.store(SMALL, report, tmp_path / "tiny.py")
    (record,) = records.read(tmp_path)
    assert record.run == "tiny/finetune/v5e:2x2" and record.device == "4 x TPU v5e"
    assert record.metrics["mfu"] == report.utilisation and record.metrics["fits"] == 1


def run_of(experiment, tmp_path):
    return Run(experiment, tmp_path / "run", compiled.DATASETS)


def test_operations_by_formula_are_those_of_the_program(tmp_path, mesh):
    """Of both ways, where every product has a way back but those of what is given."""
    whole = EXPERIMENT.language_model.architecture.model_copy(update={"remat": "none"})
    model = LanguageModelConfig(architecture=whole)
    run = run_of(EXPERIMENT.model_copy(update={"language_model": model}), tmp_path)
    for job in compiled.jobs(run, mesh()):
        rows, length = job.batch["segments"].shape
        step, state, _ = job.lesson.compose(mesh())
        with jax.set_mesh(mesh()):
            program = products(step, state, job.batch, jax.random.key(0))
        assert rows * job.operations == pytest.approx(program, rel=0.25), job.name
        assert length == (16 if job.name == "pretrain" else 8)


def test_frozen_parts_cost_less(tmp_path):
    def operations(name, **changes):
        system = EXPERIMENT.system.model_copy(update=changes)
        run = run_of(EXPERIMENT.model_copy(update={"system": system}), tmp_path / name)
        return cost.finetuning(run, "user_llm")

    whole, still = operations("full"), operations("encoder", strategy="encoder")
    model = EXPERIMENT.language_model.architecture
    frozen = flops.decoder(model, 32) + 32 * flops.head(model)
    assert whole - still == frozen
    assert operations("projection", strategy="projection") < still


def test_kernels_are_counted_by_their_blocks():
    def kernel(kind, grid):
        shapes = f"s8[{grid}]{{2,1,0}}, s8[{grid}]{{2,1,0}}, bf16[3,2048,128]"
        given = f"operand_layout_constraints={{{shapes}"
        target = 'custom_call_target="tpu_custom_call", '
        return Instruction(f"splash_mha_{kind}.1", False, (), "custom-call", (), target + given)

    block = 512**2 * 128 * 2 * 3
    assert cost.kernel_flops(kernel("fwd", "1,4,4")) == 2 * block * 10
    assert cost.kernel_flops(kernel("dkv", "1,4,4")) == 4 * block * 10
    assert cost.kernel_flops(kernel("dq", "1,4,2")) == 3 * block * 8
    assert cost.kernel_flops(kernel("unknown", "1,4,4")) == 0
    seen = flops.pairs(2048) * 128 * 2 * 3 * 2
    assert cost.kernel_flops(kernel("fwd", "1,16,16")) == pytest.approx(seen, rel=0.07)


class Chip:
    def __init__(self, *coords):
        self.coords = coords


def test_collectives_take_time_that_computing_does_not_hide():
    program = Program((GOLDEN / "program_for_a_tpu.txt").read_text())
    place = parse("v5e:2x2")
    spent = cost.estimate(program, place, [Chip(x, y, 0) for x in (0, 1) for y in (0, 1)])
    assert spent.computing == pytest.approx((8 * 110 + 5000) / 1.5e9)
    gathering, turns = 8 * 64 * 2 * 3 / 4 / (2 * 50e9), 8
    assert spent.hidden == pytest.approx(turns * min(gathering, 110 / 1.5e9))
    assert spent.waiting == pytest.approx(turns * gathering - spent.hidden + 54 / (2 * 50e9))


@pytest.mark.parametrize(
    ("mesh", "told"),
    [(MeshConfig(data=3), "does not fit 4 devices"), (MeshConfig(slices=2), "--mesh.slices 1")],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, told):
    experiment = SMALL.model_copy(update={"mesh": mesh})
    with pytest.raises(ValueError, match=told):
        list(compiled.check(experiment, parse(PLACE)))


def test_a_state_that_does_not_fit_is_told_with_its_largest_arrays():
    large = decoder("llama3_70b", dtype="bfloat16")
    experiment = SMALL.model_copy(
        update={
            "mesh": MeshConfig(data=1, fsdp=4),
            "language_model": LanguageModelConfig(architecture=large),
            "system": SMALL.system.model_copy(
                update={"cross_attention": CrossAttentionConfig(every=8, heads=64, kv_heads=8)}
            ),
            "pretrain": SMALL.pretrain.model_copy(update={"steps": 0}),
        }
    )
    (report,) = compiled.check(experiment, parse(PLACE))
    assert "GiB of a chip's 15.75" in report.problem and report.metrics == {"fits": 0.0}
    assert "decoder.layers.mlp" in report.problem and "no mesh of 4 chips holds" in report.problem
    assert "does NOT fit" in table(report)


def test_a_state_that_more_splitting_would_hold_says_so():
    wide = DECODER.model_copy(update={"vocab_size": 2**22})  # 12 GiB in each of two tables
    experiment = SMALL.model_copy(
        update={
            "language_model": LanguageModelConfig(architecture=wide),
            "pretrain": SMALL.pretrain.model_copy(update={"steps": 0}),
        }
    )
    (report,) = compiled.check(experiment, parse(PLACE))
    assert "--mesh.fsdp 4 leaves" in report.problem and "embed_tokens" in report.problem


def test_a_step_that_does_not_fit_is_told_with_what_it_keeps():
    model = LanguageModelConfig(architecture=DECODER.model_copy(update={"remat": "none"}))
    tuned = SMALL.finetune.model_copy(update={"batch_size": 2**14})
    experiment = SMALL.model_copy(
        update={
            "language_model": model,
            "finetune": tuned,
            "pretrain": SMALL.pretrain.model_copy(update={"steps": 0}),
        }
    )
    (report,) = compiled.check(experiment, parse(PLACE))
    assert "exceeds available HBM (15.75G)" in report.problem
    assert "kept of all layers" in report.problem and "[2,1,16384,256,512]" in report.problem
    assert "remat full" in report.problem and "accumulate 4096" in report.problem


LISTED = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.

Program hbm requirement 20.50G:
    HLO temp         20.40G (100.0% utilization)

  Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_name="jit(train_step)/jvp()/while/body/dot_general" source_file="a.py"
     Shape: bf16[32,8192,8192]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 4.00G
     Allocation type: HLO temp
     ==========================

  2. Size: 512.00M
     Shape: f32[1024,131072]{1,0:T(8,128)}
     Unpadded size: 512.00M
     ==========================

  3. Size: 4.00G
     Operator: op_name="jit(train_step)/transpose(jvp())/while/body/dot_general"
     Shape: bf16[32,8192,8192]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 4.00G
"""


def test_what_the_compiler_lists_is_told(mesh):
    found = [str(one) for one in memory.allocations(LISTED)]
    assert found == ["8.00 GiB bf16[32,8192,8192] of dot_general", "0.50 GiB f32[1024,131072]"]
    program = jax.make_jaxpr(lambda x: x + 1)(1.0).jaxpr
    told = memory.too_large_a_step(LISTED, program, mesh(4), 64, remat="dots", parts=2)
    assert told.startswith("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. The")
    assert "8.00 GiB bf16" in told and "remat full" in told and "accumulate 16" in told


def test_what_is_more_than_a_chip_holds_does_not_fit_though_it_compiles(monkeypatch):
    small = replace(CHIPS["v5e"], hbm=20.0 * 2**20)
    monkeypatch.setitem(CHIPS, "v5e", small)
    experiment = SMALL.model_copy(update={"finetune": FinetuneConfig(steps=0)})
    (found,) = compiled.check(experiment, parse(PLACE))
    assert not found.problem and found.memory.total < small.hbm
    monkeypatch.setitem(CHIPS, "v5e", replace(small, hbm=found.memory.total - 1.0))
    (found,) = compiled.check(experiment, parse(PLACE))
    assert found.problem.startswith("It takes more than a chip's 0.0")
    assert found.rate == 0 and "does NOT fit" in table(found)


def report(rate, problem=""):
    spent = None if problem else Time(8 * 256 / rate, 0.0, 0.0, 0.0)
    kinds = None if problem else memory.Memory(*[0] * 7)
    mesh = {"data": 1, "fsdp": 4, "tensor": 1}
    place = parse(PLACE)
    return Report("finetune", place, mesh, 8, 256, 1, "full", 1.0, problem, kinds, {}, spent, 1e9)


def test_layouts_are_ranked_by_what_they_get_through():
    found = [report(10.0), report(1.0, "too large"), report(30.0), report(20.0)]
    rates = [round(one.rate) for one in search.ranked(found)]
    assert rates == [30, 20, 10, 0]
    lines = search.table(search.ranked(found)).splitlines()
    assert len(lines) == 5 and "does not fit" in lines[-1]


def test_layouts_use_every_chip_and_the_likely_ones_fit():
    place = parse("v5e:16x16")
    model = decoder("llama3_8b", dtype="bfloat16")
    experiment = SMALL.model_copy(
        update={
            "language_model": LanguageModelConfig(architecture=model),
            "finetune": SMALL.finetune.model_copy(update={"max_tokens": 2048}),
        }
    )
    found = list(search.layouts(experiment, place))
    assert len(set(found)) == len(found)
    for one in found:
        mesh = one.mesh
        assert prod((mesh.data, mesh.fsdp, mesh.tensor)) == 256
        assert one.rows % (mesh.data * mesh.fsdp) == 0
    weights = 8_030_000_000
    order = sorted(found, key=lambda one: search.rough(experiment, place, one, weights))
    best = order[0]
    assert best.mesh.fsdp * best.mesh.tensor >= 16  # 96 GB of state in 16 GB a chip
    assert search.rough(experiment, place, best, weights)[0] == 0
    tuned = best.of(experiment)
    assert tuned.finetune.batch_size == best.rows and tuned.pretrain.steps == 0
    assert tuned.language_model.architecture.remat == best.remat


def test_the_command_says_what_is_wrong(capsys):
    config = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
    assert cli.main(["launch", "check", config, "--topology", "v5e:5x5"]) == 2
    assert "v5e has slices of" in capsys.readouterr().err
    told = ["--topology", PLACE, "--mesh.fsdp", "3"]
    assert cli.main(["launch", "check", config, *told]) == 2
    assert "does not fit 4 devices" in capsys.readouterr().err
