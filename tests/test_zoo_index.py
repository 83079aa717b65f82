"""The zoo's index: made of what is recorded, byte for byte, and its programs run."""

import ast
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import runs_made
from flax import nnx

from user_llm import cli, stages
from user_llm.config import FinetuneConfig, SystemConfig, WarmupConfig
from user_llm.models import zoo as sizes
from user_llm.runs import Run
from user_llm.training import tracking
from user_llm.zoo import count, page, snippets
from user_llm.zoo.entries import Entry, Family, Zoo
from user_llm.zoo.index import COUNTED, Value, chosen, collect, fingerprint, kind

CONFIGS = Path(__file__).parents[1] / "configs"
SYSTEMS = collect(CONFIGS, *cli.load_zoo(CONFIGS))
BY_NAME = {system.name: system for system in SYSTEMS}
NUMBER = r"(-?[\d,]+(?:\.\d+)?)"


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """The configs in another place, without their index."""
    folder = shutil.copytree(CONFIGS, tmp_path_factory.mktemp("elsewhere") / "configs")
    (folder / page.PAGE).unlink()
    return folder


def raw(system) -> list[dict]:
    """The records of a system's own row, straight from the file."""
    path = (CONFIGS / system.entry.config).with_name("results.json")
    run = f"{system.experiment.name}/{system.row}"
    file = Path(system.entry.config).name
    return [x for x in json.loads(path.read_text()) if (x["run"], x["config"]) == (run, file)]


def within(text: str, value: float) -> bool:
    """Whether a number as it is written is a value, rounded."""
    digits = text.replace(",", "")
    places = len(digits.partition(".")[2])
    zeros = len(digits) - len(digits.rstrip("0")) if not places else 0
    return abs(float(digits) - value) <= 0.5000001 * 10.0 ** (zeros - places)


def test_the_committed_index_is_what_the_verb_makes_of_the_records_anywhere(
    copied, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["zoo", "table", "--configs", str(copied)]) == 0
    assert capsys.readouterr().out == f"{copied / page.PAGE}: {len(SYSTEMS)} systems\n"
    made = (copied / page.PAGE).read_bytes()
    assert made == (CONFIGS / page.PAGE).read_bytes(), "run `user-llm zoo table`"


def test_every_config_is_in_the_zoo():
    files = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py")}
    assert {system.entry.config for system in SYSTEMS} == files - {"zoo.py"}


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_figures_are_those_of_the_records(system):
    told = raw(system)
    assert told, "run it with --record"
    name, _, data, result, seeds, _, trained, on = page.cells(system)
    assert name == system.name
    assert data == told[0]["dataset"]
    (shown,) = re.findall(
        rf"\*\*{re.escape(system.entry.recorded or 'this system')}.*", page.results(system)
    )
    cells = [cell.strip() for cell in shown.split("|")[1:-1]]
    assert result.endswith(f" {cells[0]}")
    keys = [key for key in system.metrics if key in told[0]["metrics"]]
    assert len(keys) == len(system.metrics) == len(cells)
    for key, cell in zip(keys, cells, strict=True):
        values = np.array([record["metrics"][key] for record in told])
        mean, deviation = re.fullmatch(rf"{NUMBER}(?: ±{NUMBER})?", cell).groups()
        assert within(mean, values.mean())
        assert (deviation is None) == (len(values) == 1)
        assert deviation is None or within(deviation, values.std(ddof=1))
    if system.entry.config.startswith("pods/"):
        assert (seeds, trained) == ("–", "–")
        assert on.endswith("compiled only")
    else:
        assert int(seeds) == len(told) == len({record["seed"] for record in told})
        assert system.seconds == pytest.approx(np.mean([record["seconds"] for record in told]))
        assert on == "2 CPU cores"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_parameters_are_those_of_the_config_as_it_is(system):
    assert system.parameters, "run `user-llm zoo count` where the data are"


def test_an_encoder_has_the_parameters_of_its_items_and_of_its_layers():
    system = BY_NAME["movielens_1m/encoder"]
    items = 3_416 + 2  # that five users have rated, and the ids of none and of others
    assert system.parameters == sum(sizes.count_parameters(system.experiment.encoder, items))


def test_a_pod_s_decoder_is_most_of_its_parameters():
    for name in ("gemma3_1b", "llama3_8b"):
        published = sizes.count_decoder(sizes.decoder(name))
        assert published < BY_NAME[f"pods/{name}"].parameters < 1.35 * published


def test_a_run_s_parameters_are_as_many_as_were_counted(tmp_path):
    experiment = runs_made.EXPERIMENT
    run = Run(experiment, tmp_path / "run", tmp_path / "datasets")
    make = run.make_model(experiment.system)
    real = nnx.state(make(rngs=nnx.Rngs(0)), nnx.Param)
    wanted = sum(x.size for x in jax.tree.leaves(real))
    assert count.count(experiment, tmp_path / "datasets") == wanted


def test_what_changed_since_it_was_counted_has_no_number_until_it_is_counted_again(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    config = """
from user_llm.config import *
def config():
    return encoder_only(name="tiny", data=DataConfig(users=7), encoder=EncoderConfig(embed={}))
"""
    (tmp_path / "tiny.py").write_text(config.format(8))
    lost = config.replace("users=7", 'name="movielens", source="/nowhere"').format(8)
    (tmp_path / "lost.py").write_text(lost)
    entries = tuple(Entry(config=f"{n}.py", what="x", metrics=("m",)) for n in ("tiny", "lost"))
    zoo = Zoo(families=(Family(title="t", about="a", systems=entries),))

    def systems():
        loaded = {e.config: (cli.load_config(str(tmp_path / e.config)),) for e in entries}
        return collect(tmp_path, zoo, loaded)

    assert [one.parameters for one in systems()] == [None, None]
    count.write(tmp_path, systems(), tmp_path / "datasets")
    assert "lost is not counted: " in caplog.text
    first, lost = (one.parameters for one in systems())
    assert first > 0
    assert lost is None
    (tmp_path / "tiny.py").write_text(config.format(16))
    assert systems()[0].parameters is None
    assert page.cells(systems()[0])[5] == "–"
    count.write(tmp_path, systems(), tmp_path / "datasets")
    assert systems()[0].parameters > first


def run_program(of: str, folder: str, experiment) -> None:
    """Runs the program of a kind in a folder where it finds all stages at their ends."""
    logs = {path: path.read_bytes() for path in Path(folder).rglob(tracking.FILE)}
    assert logs
    exec(compile(snippets.loading(experiment, folder), of, "exec"), {})
    assert logs == {path: path.read_bytes() for path in Path(folder).rglob(tracking.FILE)}


@pytest.mark.slow
def test_programs_load_a_system_and_an_encoder_without_training_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    system, folder = runs_made.EXPERIMENT, "runs/tiny/seed-0"
    stages.finetune(Run(system, Path(folder)))
    capsys.readouterr()
    assert kind(system) == "system"
    run_program("system", folder, system)
    titles = capsys.readouterr().out
    assert len(ast.literal_eval(titles)) == 3
    config = (Path(folder) / "config.json").read_text()
    none = {"finetune": FinetuneConfig(steps=0), "warmup": WarmupConfig(steps=0)}
    encoder = system.model_copy(update=none)
    assert kind(encoder) == "encoder"
    run_program("encoder", folder, encoder)
    best, shape, new = capsys.readouterr().out.splitlines()
    assert best.count("Recommendation(item=") == 30
    assert shape == f"(3, {system.encoder.embed})"
    assert new.count("Recommendation(item=") == 10
    assert (Path(folder) / "config.json").read_text() == config


@pytest.mark.slow
def test_a_program_loads_a_language_model_without_training_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parts = {"system": SystemConfig(streams=()), "finetune": FinetuneConfig(steps=0)}
    experiment = runs_made.EXPERIMENT.model_copy(update=parts)
    assert kind(experiment) == "language_model"
    stages.warmup(Run(experiment, Path("runs/tiny")))
    capsys.readouterr()
    run_program("language_model", "runs/tiny", experiment)
    assert capsys.readouterr().out.strip()


def test_the_program_of_what_was_never_trained_shows_its_config(monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    system = BY_NAME["pods/llama3_8b"]
    exec(compile(snippets.python(system), "pods", "exec"), {})
    assert json.loads(capsys.readouterr().out)["name"] == "llama3_8b"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("quickstart", "runs/quickstart"),
        ("movielens_1m/encoder", "runs/movielens_1m_encoder/seed-0"),
        ("movielens_1m/hstu", "runs/movielens_1m_hstu"),
        ("movielens_1m/systems/item_tokens", "runs/systems/item_tokens/seed-0"),
        ("world/differences/difference", "runs/differences/difference/seed-0"),
    ],
)
def test_a_program_reads_the_folder_that_the_recorded_command_wrote(name, folder):
    assert f'Path("{folder}")' in snippets.python(BY_NAME[name])


def test_commands_begin_with_those_of_the_runs_that_a_system_needs():
    lines = snippets.commands(BY_NAME["movielens_1m/systems/item_tokens"]).splitlines()
    assert lines[0].startswith("export USER_LLM_DATA=FOLDER  # that holds ml-1m, ")
    assert [line.partition("  # ")[0] for line in lines[1:]] == [
        "user-llm run configs/language_model/films.py --record",
        "user-llm sweep configs/movielens_1m/systems.py --only encoder",
        "user-llm sweep configs/movielens_1m/systems.py --only item_tokens",
    ]
    (grown,) = BY_NAME["movielens_1m/grow"].before
    assert {record.run.partition("/")[0] for record in grown} == {"movielens_1m_first_users"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(0.3242825, 0.0020833), "0.324 ±0.002"),
        (Value(0.0929809, 0.0004033), "0.0930 ±0.0004"),
        (Value(0.5855, 0.00042), "0.5855 ±0.0004"),
        (Value(0.5855, 0.0000042), "0.5855 ±0.0000"),
        (Value(0.2060, 0.0216), "0.206 ±0.022"),
        (Value(86_864.0, 82_385.0), "86,900 ±82,400"),
        (Value(0.0369, 0.0), "0.0369 ±0"),
        (Value(0.0, None), "0"),
        (Value(98.594, None), "98.6"),
        (Value(4_978_882.0, None), "4,980,000"),
    ],
)
def test_a_value_has_the_digits_that_count(value, text):
    assert page.said(value) == text


def test_numbers_of_parameters_are_rounded_to_three_digits():
    shown = {
        812: "812",
        94_512: "94,512",
        5_070_336: "5.07 M",
        8_398_901_327: "8.40 B",
        123_456_789: "123 M",
    }
    assert {n: page.rounded(n) for n in shown} == shown


def test_list_has_a_line_for_each_system(capsys):
    assert cli.main(["zoo", "list", "--configs", str(CONFIGS)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["system", "data", "result", "parameters", "trained", "in", "on"]
    assert [line.split()[0] for line in lines] == list(BY_NAME)
    encoder = next(line for line in lines if line.startswith("movielens_1m/encoder "))
    assert "recall@10 0.324 ±0.002" in encoder


def test_show_tells_paper_config_command_and_program(capsys):
    assert cli.main(["zoo", "show", "movielens_1m/hstu", "--configs", str(CONFIGS)]) == 0
    said = capsys.readouterr().out
    for part in (
        "movielens_1m/hstu",
        "https://arxiv.org/abs/2402.17152",
        "movielens_1m/hstu.py",
        "user-llm run configs/movielens_1m/hstu.py --record",
        'Path("runs/movielens_1m_hstu")',
        "0.297",
    ):
        assert part in said
    assert "<details>" not in said


@pytest.mark.parametrize(
    ("name", "near"),
    [("item_tokens", "movielens_1m/systems/item_tokens"), ("qickstart", "quickstart")],
)
def test_an_unknown_name_is_answered_with_what_it_may_mean(name, near, capsys):
    assert cli.main(["zoo", "show", name, "--configs", str(CONFIGS)]) == 2
    assert f"no system is named {name}; there are {near}\n" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["list", "table", "count", "show x"])
def test_without_a_checkout_the_verbs_say_what_is_missing(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["zoo", *verb.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: configs holds no zoo.py, which lists the systems; configs come with"
    )
    assert "--configs DIR" in said


def test_a_zoo_that_names_what_is_not_there_is_refused(copied):
    zoo, experiments = cli.load_zoo(copied)
    entry = Entry(config="movielens_1m/systems.py", row="item_token", what="x", metrics=("m",))
    with pytest.raises(ValueError, match=r"row='item_token' of .*systems.py, .* item_tokens"):
        chosen(entry, experiments[entry.config])
    with pytest.raises(ValueError, match="no metrics tell how good these are: a"):
        Zoo(families=(Family(title="t", about="", systems=(Entry(config="a.py", what="x"),)),))
    family = zoo.families[0]
    with pytest.raises(ValueError, match="the zoo lists twice: quickstart"):
        Zoo(families=(family, family))


def test_damaged_files_are_named(copied, tmp_path):
    folder = shutil.copytree(copied, tmp_path / "configs")
    (folder / COUNTED).write_text('{"quickstart": 3}')
    with pytest.raises(ValueError, match=rf"{COUNTED} is damaged; `user-llm zoo count` writes it"):
        collect(folder, *cli.load_zoo(folder))


def test_a_fingerprint_is_of_what_shapes_a_system_alone():
    experiment = runs_made.EXPERIMENT
    longer = experiment.pretrain.model_copy(update={"steps": 1})
    wider = experiment.encoder.model_copy(update={"embed": 16})
    assert fingerprint(
        experiment.model_copy(update={"pretrain": longer, "seed": 1})
    ) == fingerprint(experiment)
    assert fingerprint(experiment.model_copy(update={"encoder": wider})) != fingerprint(experiment)
