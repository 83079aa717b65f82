"""How many parameters the zoo's systems have, counted where their data are."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from user_llm.config import TEXT_VECTOR, Experiment
from user_llm.files import write_atomically
from user_llm.models.zoo import count_model
from user_llm.runs import Run
from user_llm.sources import opened
from user_llm.zoo.index import COUNTED, Counted, System, counted, fingerprint

logger = logging.getLogger(__name__)


def write(folder: Path, systems: Sequence[System], data_dir: Path) -> Path:
    """Counts the systems whose config is another than it was, and keeps the rest; the file.

    Those whose data are not at hand stay as they are, and are named.
    """
    before, found = counted(folder), {}
    for system in systems:
        known, told = before.get(system.name), fingerprint(system.experiment)
        if known is None or known.config != told:
            try:
                known = Counted(parameters=count(system.experiment, data_dir), config=told)
            except ValueError as error:
                logger.warning("%s is not counted: %s", system.name, error)
        if known:
            found[system.name] = known.model_dump()
    path = folder / COUNTED
    write_atomically(path, json.dumps(found, indent=2) + "\n")
    return path


def count(experiment: Experiment, data_dir: Path) -> int:
    """The parameters of what an experiment makes, by shapes alone; its data set is built first.

    Raises:
      ValueError: its data or weights are not there.
    """
    with TemporaryDirectory() as folder:
        run = Run(experiment, Path(folder), data_dir)
        config = experiment.data
        data = opened(config, run.data_folder, clock=experiment.encoder.reads_clock)
        if text_encoder := run.text_encoder_config:
            width = text_encoder.hidden_size  # of vectors that need not be made to be counted
            blank = np.zeros((len(data.item), width), np.float32)
            seen = not config.features or TEXT_VECTOR in config.features
            data = data.with_vectors(blank, seen)
        run.dataset = data
        trains = experiment.finetune.steps or experiment.warmup.steps
        return count_model(run.make_model(experiment.system) if trains else run.make_encoder)
