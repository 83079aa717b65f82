"""The READMEs: their links lead somewhere, and the commands that they show are commands."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from readmes import FENCED, READMES, ROOT, blocks, commands

from user_llm import cli, grammar

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as code hosts name them."""
    seen, found = Counter(), set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", READMES, ids=named)
def test_every_link_of_a_page_leads_somewhere(page):
    lost = []
    for match in LINK.finditer(FENCED.sub("", page.read_text())):
        link = match[1] or match[2]
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            lost.append(link)
    assert not lost


def shown() -> list:
    """Each command with the page or config that shows it."""
    found = []
    for page in READMES:
        for language in ("bash", "console", "text"):
            for block in blocks(page.read_text(), language):
                found += [(page, words) for words in commands(block)]
    for config in CONFIGS:
        header = ast.get_docstring(ast.parse(config.read_text())) or ""
        found += [(config, words) for words in commands(header)]
    return [pytest.param(words, id=f"{named(page)}: {' '.join(words)}") for page, words in found]


@pytest.mark.parametrize("words", shown())
def test_every_command_that_is_shown_is_one_of_the_command_line(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = vars(grammar.parser().parse_args(words))
    verb, config = options.pop("verb"), Path(options.get("config", ""))
    if config.suffix == ".py" and config.is_file():  # its fields are flags
        if verb.startswith("launch "):
            cli._launch_options(verb, **options)
        else:
            cli._experiment_options(verb, **options)
    for name in ("config", "file"):
        if str(options.get(name, "")).startswith("configs/"):
            assert Path(options[name]).is_file()


def test_commands_are_found_in_all_that_a_console_shows():
    script = """
A=b user-llm run x.py --name "a b" \\
  --seed 1 && user-llm report runs/x  # as pixels, too
$ user-llm zoo list | grep -E '^(a|b)'
xpk --command "user-llm sweep y.py"
cat > f <<'CSV'
user-llm is no command here
CSV
"""
    assert list(commands(script)) == [
        ["run", "x.py", "--name", "a b", "--seed", "1"],
        ["report", "runs/x"],
        ["zoo", "list"],
        ["sweep", "y.py"],
    ]
