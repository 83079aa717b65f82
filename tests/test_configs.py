"""Every config of the zoo: a header that says how it is run, and an experiment that is whole."""

import ast
from pathlib import Path

import pytest

from user_llm.cli import load_config, load_sweep
from user_llm.config import Experiment
from user_llm.models.user_llm import check
from user_llm.sweep import default_folder, place

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.py") if path.name != "zoo.py")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_how_it_is_run_and_survives_json(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert header and "user-llm " in header
    if "def sweep(" in path.read_text():
        experiments = load_sweep(str(path)).experiments
        places = {str(place(default_folder(str(path)), one)) for one in experiments}
        assert {one.encoder_from for one in experiments if one.encoder_from} <= places
    else:
        experiments = (load_config(str(path)),)
    for experiment in experiments:
        check(experiment.system)
        assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
