"""What an endpoint replies: what is read and kept of it, and what is made of a malformed answer."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from user_llm.files import write_atomically

TOLD = 300  # letters of an error

Form = TypeVar("Form", bound=BaseModel)


class _Text(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Text


class Usage(BaseModel):
    """What a reply costs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(BaseModel):
    """As much of a chat completion as is read; the rest is ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None

    def kept(self, request: dict[str, Any]) -> "Kept":
        """The answer to a request as it is kept."""
        used = self.usage or Usage()
        answer = self.choices[0].message.content or ""
        return Kept(**used.model_dump(), request=request, answer=answer)


class Kept(Usage):
    """An answer as its file holds it."""

    request: dict[str, Any]
    answer: str

    @classmethod
    def read(cls, path: Path) -> "Kept | None":
        """A file's answer; none without a file, or if a crash of the machine cut it off."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self.model_dump_json(indent=1) + "\n")


def mend(answer: str, form: type[Form]) -> Form:
    """What stands between the outermost braces of an answer, whatever stands around them.

    Line breaks within its strings are forgiven.

    Raises:
      ValueError: it is no such form either.
    """
    found = answer[answer.find("{") : answer.rfind("}") + 1]
    try:
        return form.model_validate(json.loads(found, strict=False))
    except RecursionError as error:
        raise ValueError("its braces are nested too deep") from error


def told(error: Exception) -> str:
    """An error in one line."""
    text = str(error)
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_input=False)
        text = "; ".join(": ".join([*map(str, one["loc"]), one["msg"]]) for one in found)
    elif not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {error}"
    line = " ".join(text.split())
    return line if len(line) <= TOLD else line[:TOLD] + "…"
