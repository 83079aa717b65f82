"""A run's folder: what it says of itself, and which experiment may go on in it."""

import json

import numpy as np
import pytest
from runs_made import EXPERIMENT
from their_decoders import write_theirs
from timelines_made import dataset

from user_llm import commands
from user_llm.config import DecoderConfig, Experiment, LanguageModelConfig
from user_llm.huggingface import decoder_config
from user_llm.runs import Run
from user_llm.sources import data_path


def with_part(part: str, **changes) -> Experiment:
    own = getattr(EXPERIMENT, part).model_copy(update=changes)
    return EXPERIMENT.model_copy(update={part: own})


def test_a_folder_tells_its_experiment(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    Run(EXPERIMENT, folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    text = (folder / "config.json").read_text()
    assert Experiment.model_validate_json(text) == EXPERIMENT
    assert Run.open(folder).experiment == EXPERIMENT
    assert Run.open(folder).config == json.loads(text)


def test_the_same_experiment_goes_on_in_its_folder(tmp_path):
    Run(EXPERIMENT, tmp_path)
    before = (tmp_path / "config.json").stat()
    assert Run(EXPERIMENT.model_copy(), tmp_path).experiment == EXPERIMENT
    assert (tmp_path / "config.json").stat().st_mtime_ns == before.st_mtime_ns


def test_a_run_begun_before_a_field_existed_goes_on_with_its_default(tmp_path):
    Run(EXPERIMENT, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["pretrain"]["patience"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pretrain").mkdir()
    assert Run(EXPERIMENT, tmp_path).experiment == EXPERIMENT
    with pytest.raises(ValueError, match=r"\(pretrain.patience: 0 there, 3 now\)"):
        Run(with_part("pretrain", patience=3), tmp_path)


def test_another_experiment_is_refused_with_every_field_that_differs(tmp_path):
    Run(EXPERIMENT, tmp_path)
    (tmp_path / "warmup").mkdir()
    changed = with_part("finetune", steps=9, tasks={"favorite_category": 1.0})
    changed = changed.model_copy(update={"seed": 5})
    with pytest.raises(ValueError) as error:
        Run(changed, tmp_path)
    said = str(error.value)
    assert said.startswith(f"{tmp_path} holds a run of another experiment (")
    assert said[said.index("(") + 1 : said.index(")")].split("; ") == [
        "seed: 0 there, 5 now",
        "finetune.steps: 2 there, 9 now",
        "finetune.tasks.next_item: 1.0 there, None now",
        "finetune.tasks.favorite_category: None there, 1.0 now",
    ]
    assert "--run-dir" in said
    assert Run.open(tmp_path).experiment == EXPERIMENT


def test_a_run_of_which_nothing_has_come_gives_way(tmp_path):
    Run(EXPERIMENT, tmp_path)
    other = with_part("finetune", steps=9)
    assert Run(other, tmp_path).experiment == Run.open(tmp_path).experiment == other


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run; start one with `user-llm run CONFIG`"):
        Run.open(tmp_path)
    assert not list(tmp_path.iterdir())


def test_relative_paths_of_data_lie_below_the_folder_of_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("USER_LLM_DATA", str(tmp_path))
    assert data_path("ml-1m") == tmp_path / "ml-1m"
    assert str(data_path("/elsewhere/ml-1m")) == "/elsewhere/ml-1m"
    monkeypatch.delenv("USER_LLM_DATA")
    assert str(data_path("/elsewhere/ml-1m")) == "/elsewhere/ml-1m"
    with pytest.raises(ValueError, match=r"ml-1m is looked for below \$USER_LLM_DATA, .* not set"):
        data_path("ml-1m")


def test_baselines_are_the_same_system_without_the_user(tmp_path):
    run = Run(EXPERIMENT, tmp_path)
    own, plain, told = (run.systems[name] for name in ("user_llm", "no_context", "text_prompt"))
    assert len(run.systems) == 3  # shuffled memory is asked of the system itself
    assert own == EXPERIMENT.system
    assert plain == own.model_copy(update={"streams": ()})
    assert told == own.model_copy(update={"streams": (), "text_history": 2})


def test_only_the_baselines_that_are_asked_for_are_trained(tmp_path):
    run = Run(with_part("evaluation", baselines=("shuffled_memory", "text_prompt")), tmp_path)
    assert list(run.systems) == ["user_llm", "text_prompt"]


def test_training_events_are_all_before_validation_and_test(tmp_path):
    run = Run(EXPERIMENT, tmp_path)
    run.dataset = dataset([[2, 3, 4, 5], [3, 4], [5, 4, 3]])
    # The last two of the first and of the third user are asked for; the second has too few.
    np.testing.assert_array_equal(run.training_events, [0, 1, 4, 5, 6])
    assert set(run.split.validation) | set(run.split.test) == {2, 3, 7, 8}


NARROW = DecoderConfig(dtype="bfloat16", param_dtype="bfloat16")


def test_a_read_decoder_has_the_types_that_the_experiment_says(tmp_path):
    write_theirs(tmp_path / "model")
    run = Run(
        with_part("language_model", weights=str(tmp_path / "model"), architecture=NARROW),
        tmp_path / "run",
    )
    types = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    assert run.decoder_config == decoder_config(tmp_path / "model").model_copy(update=types)


@pytest.mark.parametrize(
    "changes", [{"warmup": {"steps": 1}}, {"system": {"strategy": "full"}}, {}], ids=str
)
def test_weights_that_are_trained_are_wide(tmp_path, changes):
    parts = {"warmup": {"steps": 0}, "system": {"strategy": "encoder"}} | changes
    experiment = Experiment(
        name="narrow", language_model=LanguageModelConfig(architecture=NARROW), **parts
    )
    run = Run(experiment, tmp_path)
    if not changes:
        return run.check_language_model()
    with pytest.raises(ValueError, match="architecture.param_dtype=bfloat16 would lose"):
        run.check_language_model()


def copied(data_folder, tmp_path, weights="stories260K", tokenizer="stories260K"):
    """A run with the weights of one small model and the tokenizer of another."""
    models, folder = data_folder / "models", tmp_path / "model"
    folder.mkdir()
    for source, names in (
        (weights, ("config.json", "model.safetensors")),
        (tokenizer, ("tokenizer.json", "tokenizer_config.json")),
    ):
        for name in names:
            (folder / name).write_bytes((models / source / name).read_bytes())
    return folder, Run(with_part("language_model", weights=str(folder)), tmp_path / "run")


def test_language_model_that_fits_is_accepted(data_folder, tmp_path):
    _, run = copied(data_folder, tmp_path)
    run.check_language_model()


def test_tokenizer_of_another_model_is_refused(data_folder, tmp_path):
    _, run = copied(data_folder, tmp_path, tokenizer="stories3M")
    with pytest.raises(ValueError, match="has 4096 tokens and its embeddings 512"):
        run.check_language_model()


def test_weights_are_looked_at_before_anything_is_trained(data_folder, tmp_path):
    folder, run = copied(data_folder, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model.safetensors is missing or cut short"):
        commands.run(run.experiment, run.folder, verb="run")
    assert {path.name for path in run.folder.iterdir()} == {"config.json"}
