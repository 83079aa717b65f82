"""What a run has trained, read back; nothing is trained for it."""

from collections.abc import Callable

import optax
from flax import nnx

from user_llm.files import to_path
from user_llm.inference.memories import Memories
from user_llm.inference.recommend import Recommender
from user_llm.runs import Run
from user_llm.training.checkpoint import Checkpoints
from user_llm.training.step import Params, setup


def encoder(run: Run) -> Params:
    """The encoder of this run, or of the run that its experiment names, at its best so far.

    Raises:
      ValueError: it has not been trained at all.
    """
    if other := run.experiment.encoder_from:
        return encoder(Run.open(to_path(other), run.data_dir))
    missing = "trained encoder; train it with `user-llm pretrain CONFIG`"
    return _best(run, "pretrain", run.make_encoder, missing)


def system(run: Run, name: str = "user_llm") -> Params:
    """A system as fine-tuning left it, at its best so far.

    Raises:
      ValueError: it has not been fine-tuned at all.
    """
    missing = f"fine-tuned {name}; train it with `user-llm run CONFIG`"
    return _best(run, f"finetune-{name}", run.make_model(run.systems[name]), missing)


def _best(run: Run, stage: str, make_model: Callable[..., nnx.Module], missing: str) -> Params:
    """The parameters of a stage's best checkpoint, where the run's mesh wants them."""
    saved = Checkpoints(run.folder / stage / "checkpoints")
    if not saved.steps():
        raise ValueError(f"{run.folder} holds no {missing}")
    _, abstract, _ = setup(make_model, optax.identity(), nnx.Param, run.mesh)
    return saved.restore_params(abstract.params).state


def memories(run: Run) -> Memories:
    """What the fine-tuned system of a run remembers, ready to be asked about any users.

    Raises:
      ValueError: it has not been fine-tuned, or its memory is not of timelines alone.
    """
    make_model, history = run.make_model(run.systems["user_llm"]), run.experiment.finetune.history
    return Memories(make_model, system(run), history=history, mesh=run.mesh)


def recommender(run: Run) -> Recommender:
    """The trained encoder of a run, ready to be asked about any users.

    Raises:
      ValueError: it has not been trained at all.
    """
    return Recommender(run.dataset, run.make_encoder, encoder(run), mesh=run.mesh)
