"""What the READMEs and the configs' headers show: blocks of code, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HIDDEN = {".venv", ".git", "runs", "datasets", "build"}
READMES = [
    path
    for path in sorted(ROOT.rglob("README.md"))
    if not HIDDEN.intersection(path.relative_to(ROOT).parts)
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of that language."""
    return [block for told, block in FENCED.findall(text) if told == language]


def commands(script: str) -> Iterator[list[str]]:
    """The words of each `user-llm` in a script, or in a console with what it answered."""
    script = re.sub(r"<<'(\w+)'\n.*?^\1$", "", script, flags=re.MULTILINE | re.DOTALL)
    for line in re.sub(r"\\\n\s*", "", script).splitlines():
        if not re.search(r"(^|[\"$;|&(]|=\S+)\s*user-llm ", line):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for word in list(words):  # a command within a command's quotes
            if " user-llm " in f" {word}":
                words += [";", *shlex.split(word)]
        starts = [i for i, word in enumerate(words) if word == "user-llm"]
        for start in starts:
            rest = words[start + 1 :]
            ends = (i for i, word in enumerate(rest) if word in (";", "|", "&&", "&", "user-llm"))
            yield rest[: next(ends, len(rest))]
