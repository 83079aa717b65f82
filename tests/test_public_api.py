"""The Python API as a user meets it: few names, which explain themselves."""

import ast
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import user_llm

ROOT = Path(user_llm.__file__).parent
CODE = sorted(ROOT.rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_importing_it_imports_nothing_heavy():
    heavy = "jax", "flax", "transformers", "numpy", "pydantic"
    told = f"import sys, user_llm; print([x for x in {heavy} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_its_names_are_those_that_are_listed():
    assert set(user_llm.__all__) <= set(dir(user_llm))
    with pytest.raises(AttributeError, match="no attribute 'Runs'"):
        user_llm.Runs  # noqa: B018 -- to look it up is what fails
    assert (ROOT / "py.typed").is_file()


@pytest.mark.parametrize("name", user_llm.__all__)
def test_help_on_a_name_tells_what_it_is(name):
    thing = getattr(user_llm, name)
    assert len(pydoc.render_doc(thing, renderer=pydoc.plaintext)) > 200
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return
    own = vars(thing) if inspect.isclass(thing) else {name: thing}
    functions = {key: one for key, one in own.items() if inspect.isfunction(one)}
    for key, one in functions.items():
        if key == "__init__" or not key.startswith("_"):
            assert key == "__init__" or inspect.getdoc(one)
            typed = inspect.signature(inspect.unwrap(one)).parameters.values()
            free = {"self", "args", "kwargs"}  # a Protocol's own constructor takes anything
            assert all(p.annotation is not p.empty for p in typed if p.name not in free)


def untold(node: ast.AST, of: ast.ClassDef | None = None) -> list[str]:
    """The public functions that raise a ValueError of their own, and do not say so.

    What an override without a docstring raises is told where it overrides.
    """
    found = []
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.ClassDef):
            found += untold(part, part)
        elif isinstance(part, ast.FunctionDef):
            told = ast.get_docstring(part) or ""
            if of is not None and part.name == "__init__":
                told += ast.get_docstring(of) or ""
            elif part.name.startswith("_") or (of is not None and of.bases and not told):
                continue
            raised = [x.exc for x in ast.walk(part) if isinstance(x, ast.Raise) and x.exc]
            mistake = any(ast.unparse(x).startswith("ValueError(") for x in raised)
            found += [part.name] if mistake and "Raises" not in told else []
    return found


def test_what_a_function_raises_is_told():
    found = {named(path): untold(ast.parse(path.read_text())) for path in CODE}
    assert not {path: names for path, names in found.items() if names}
