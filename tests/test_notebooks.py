"""A notebook runs anywhere; what is kept of it is small, clean, and of the script beside it."""

import ast
import re
import resource
import shutil
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from nbmake.nb_run import NotebookRun

from user_llm.evaluation import records

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SECONDS = 180.0  # that one may take on two cores with nothing else to do
BYTES = 400_000
PATH = re.compile(r"(?<![\w./])/(home|mnt|opt|private|root|srv|tmp|usr|var|work|Users)/|[A-Z]:\\\\")
each = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_scripts_and_notebooks_are_pairs():
    assert NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == NAMES


@each
def test_script_and_notebook_are_in_step(name):
    notebook = read(name)
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    assert cells(jupytext.read(FOLDER / f"{name}.py")) == cells(notebook)


@each
def test_outputs_are_kept_and_are_small_and_clean(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < BYTES
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    told = [output.get("data", {}).get("text/plain", output.get("text", "")) for output in outputs]
    assert outputs and "error" not in {output.output_type for output in outputs}
    assert {output.name for output in outputs if output.output_type == "stream"} <= {"stdout"}
    assert not [text for text in told if "Traceback" in text or PATH.search(text)]


@each
def test_links_lead_somewhere(name):
    told = "\n".join(source for kind, source in cells(read(name)) if kind == "markdown")
    links = re.findall(r"\]\(([^)#\s]+)", told)
    assert not [link for link in links if "://" not in link and not (FOLDER / link).exists()]


def test_recorded_results_that_are_shown_are_those_recorded():
    source = (FOLDER / "04_what_makes_you_unique.py").read_text()
    (shown,) = re.findall(r"^recorded = (\{.*?^\})", source, re.MULTILINE | re.DOTALL)
    rows = {"timeline": "timeline_2", "+ differences": "difference_2"}
    rows |= {"+ strangers'": "shuffled_2", "+ zeros": "zeroed_2"}
    found = {name: f"{row}/user_llm" for name, row in rows.items()}
    found["no model"] = "timeline_2/past"  # the same of every seed
    errors = {}
    for one in records.read(FOLDER.parent / "configs" / "world"):
        mean = round(one.metrics.get("test/rating_among_peers/mae", np.nan), 3)
        errors.setdefault(one.run, []).append(mean)
    wanted = {name: tuple(dict.fromkeys(errors[run])) for name, run in found.items()}
    assert ast.literal_eval(shown) == wanted


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a machine that is busy with other work
@each
def test_runs_from_any_folder_in_time_and_leaves_nothing_there(name, tmp_path, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)  # for meshes of many devices, which it has not
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # it computes more than it compiles
    notebook = Path(shutil.copy(FOLDER / f"{name}.ipynb", tmp_path))
    before = processor_seconds()
    result = NotebookRun(notebook, default_timeout=1500).execute()
    assert result.error is None, result.error.trace
    assert processor_seconds() - before < 2 * SECONDS
    assert list(tmp_path.iterdir()) == [notebook]


def processor_seconds():
    """Of all processes that were started here and have ended: other work does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
