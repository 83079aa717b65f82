"""LLMs that read a user's timeline as embeddings.

    run = user_llm.Run.open(Path("runs/quickstart"))
    system = user_llm.System(run, "user_llm", user_llm.finetune(run))

Names are imported when they are first used, so that `import user_llm` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from user_llm.config import Experiment as Experiment
    from user_llm.data.dataset import load as load
    from user_llm.data.tasks import TASKS as TASKS
    from user_llm.evaluation.system import System as System
    from user_llm.inference.recommend import Recommender as Recommender
    from user_llm.models.user_llm import UserLLM as UserLLM
    from user_llm.runs import Run as Run
    from user_llm.stages import finetune as finetune
    from user_llm.stages import pretrain as pretrain
    from user_llm.stages import recommender as recommender

HOMES = {
    "Experiment": "config",
    "Recommender": "inference.recommend",
    "Run": "runs",
    "System": "evaluation.system",
    "TASKS": "data.tasks",
    "UserLLM": "models.user_llm",
    "finetune": "stages",
    "load": "data.dataset",
    "pretrain": "stages",
    "recommender": "stages",
}
__all__ = list(HOMES)  # pyright: ignore[reportUnsupportedDunderAll]  -- they are lazy


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
