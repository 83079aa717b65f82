"""LLMs that read a user's timeline as embeddings.

    run = user_llm.Run.open(Path("runs/quickstart"))
    user_llm.recommender(run).recommend([events], count=3)   # the encoder alone
    system = user_llm.System(run, "user_llm", user_llm.finetune(run))   # a decoder that reads it

`Experiment` is a run as a value and `Run` its folder; `pretrain` and `finetune` train, or load what
is trained; `recommender` and `System` answer. `build` makes a data set and `load` reads it, without
a run; `TASKS` are what can be asked, and `UserLLM` is the model itself. A stream of one's own is a
`Stream`, made of what it is `Given`, that makes a `Memory` of a batch.

What stays: the names listed here, the fields of `Experiment`, the verbs of `user-llm`, and the
files that a run and an export leave. Within a minor version they change in no way that breaks who
uses them, and a version reads what the minor version before it wrote. All else may move.

Names are imported when they are first used, so that `import user_llm` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from user_llm.config import Experiment as Experiment
    from user_llm.data.builders import build as build
    from user_llm.data.dataset import load as load
    from user_llm.data.tasks import TASKS as TASKS
    from user_llm.evaluation.system import System as System
    from user_llm.inference.recommend import Recommender as Recommender
    from user_llm.models.layers import Memory as Memory
    from user_llm.models.streams import Given as Given
    from user_llm.models.streams import Stream as Stream
    from user_llm.models.user_llm import UserLLM as UserLLM
    from user_llm.runs import Run as Run
    from user_llm.stages import finetune as finetune
    from user_llm.stages import pretrain as pretrain
    from user_llm.trained import recommender as recommender

HOMES = {
    "Experiment": "config",
    "Given": "models.streams",
    "Memory": "models.layers",
    "Recommender": "inference.recommend",
    "Run": "runs",
    "Stream": "models.streams",
    "System": "evaluation.system",
    "TASKS": "data.tasks",
    "UserLLM": "models.user_llm",
    "build": "data.builders",
    "finetune": "stages",
    "load": "data.dataset",
    "pretrain": "stages",
    "recommender": "trained",
}
__all__ = list(HOMES)  # pyright: ignore[reportUnsupportedDunderAll] -- they are lazy


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
