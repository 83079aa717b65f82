"""A run's system as files that are served, in one of several formats."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from user_llm.data import frame
from user_llm.runs import Run
from user_llm.serving import sealed, soft_prompt, stablehlo, vectors
from user_llm.serving.leaving import TESTED, Leaving, tested, write_decoder
from user_llm.serving.served import (
    DATA,
    FORMAT,
    SYSTEM,
    TEST,
    USER,
    own_names,
)

OF_USERS = (soft_prompt.FORMAT, vectors.FORMAT)  # formats that hold what is known of users
CARD = (
    "`decoder/` is the language model alone, which transformers loads; "
    "`user_llm.serving.served.Served` reads this folder whole."
)


def export(
    run: Run,
    folder: Path,
    form: str = FORMAT,
    *,
    name: str = "user_llm",
    adapter: bool = False,
    results: str = "",
    events: Path | None = None,
) -> None:
    """Writes a system of a run into a new folder, in one of the formats of `sealed.LAYOUTS`.

    Args:
      name: which of the run's systems.
      adapter: as of `Leaving`.
      results: what the model card says of how it was judged.
      events: a file of users, for formats that hold what is known of them; else the run's own.

    Raises:
      ValueError: there is something already; the system is not fine-tuned, or reads of users what
        is not in their timelines; an adapter is asked for and there is none; or the format has no
        place for what is asked for.
    """
    writers = {
        FORMAT: write,
        stablehlo.FORMAT: stablehlo.write,
        soft_prompt.FORMAT: soft_prompt.write,
        vectors.FORMAT: vectors.write,
    }
    if form not in writers:
        raise ValueError(f"there is no format {form}; there are {', '.join(writers)}")
    if adapter and form != FORMAT:
        raise ValueError(f"{form} has no place for --adapter, which {FORMAT} has; leave it out")
    if events and form not in OF_USERS:
        raise ValueError(f"{form} holds no users; --events goes with {' and '.join(OF_USERS)}")
    writers[form](Leaving(run, name, adapter, results, events), folder)


def write(leaving: Leaving, folder: Path) -> None:
    """Writes all of a system, from which `Served.load` makes it again.

    Raises:
      ValueError: as `export`.
    """
    served, vocabulary = leaving.served, leaving.run.decoder_config.vocab_size

    def fill(new: Path) -> None:
        write_decoder(leaving, new)
        own = {name: np.asarray(x) for name, x in own_names(served.params).items()}
        save_file(own, new / USER)
        (new / SYSTEM).write_text(served.told.model_dump_json(indent=2) + "\n")
        frame.write(served.dataset, new / DATA)
        events, prompt = tested(served.dataset), list(range(min(TESTED, vocabulary)))
        save_file(served.answered(events, prompt), new / f"{TEST}.safetensors")
        (new / f"{TEST}.json").write_text(json.dumps({"events": events, "prompt": prompt}))
        (new / "README.md").write_text(leaving.card(CARD))

    sealed.sealed(folder, FORMAT, fill, leaving.told)
