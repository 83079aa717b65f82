"""A run's system on its way into a folder: what every format of an export begins with."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from user_llm import trained
from user_llm.config import DecoderConfig, LoRAConfig, SystemConfig
from user_llm.data import frame, unseen
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.huggingface import save_adapter, save_decoder
from user_llm.models.layers import merged
from user_llm.runs import Run
from user_llm.serving import sealed
from user_llm.serving.served import ADAPTER, DECODER, Served, Told

TESTED = 12  # events and tokens of a self-test
CARD = """---
library_name: user-llm
pipeline_tag: text-generation
tags: [user-llm, user-embeddings, recommendation]
datasets: [{dataset}]
---

# {name}

A language model that reads a user's timeline as embeddings: streams {streams}, fusion {fusion},
trained by the strategy {strategy}. {told} `export.json` says what each file must be.

* data: {dataset}, {items:,} items
* events read of a user: the newest {history}
* seed {seed}; the experiment's hash is `{config}`

## Results

```text
{results}
```
"""


@dataclass(frozen=True)
class Leaving:
    """One of a run's systems, and how it is to leave.

    Args:
      adapter: leaves the decoder as it was, with its LoRA beside it in PEFT's layout; else merged.
      results: what a model card says of how it was judged.
      events: a file of those who leave with it; else the run's own users.
    """

    run: Run
    name: str = "user_llm"
    adapter: bool = False
    results: str = ""
    events: Path | None = None

    @cached_property
    def system(self) -> SystemConfig:
        """How the system is built in the run.

        Raises:
          ValueError: there is none of that name, it reads of users what is not in their timelines,
            or an adapter is asked for and there is none.
        """
        run, name = self.run, self.name
        if name not in run.systems:
            raise ValueError(f"the run has no system {name}; it has {', '.join(run.systems)}")
        system = run.systems[name]
        if not set(system.streams) <= {"timeline"}:
            raise ValueError(
                f"{name} reads {', '.join(system.streams)}; a system whose memory is of timelines "
                "alone can be exported"
            )
        if self.adapter and not system.lora.rank:
            raise ValueError(f"{name} has no adapter; leave --adapter out")
        return system

    @cached_property
    def served(self) -> Served:
        """The system as it is served.

        Raises:
          ValueError: as `system`, or it has not been fine-tuned.
        """
        run, system = self.run, self.system
        params = trained.system(run, self.name)
        if system.lora.rank and not self.adapter:
            params = {**params, "decoder": merged(params["decoder"], system.lora)}
            system = system.model_copy(update={"strategy": "full", "lora": LoRAConfig()})
        told = Told(
            system=system,
            encoder=run.experiment.encoder,
            decoder=run.decoder_config.model_dump(mode="json", include=DecoderConfig.COMPUTING),
            history=run.experiment.finetune.history,
            noun=run.experiment.data.noun,
        )
        data = frame.frame(run.dataset)
        return Served(told, run.make_model(system), params, data, run.tokenizer, "")

    @property
    def users(self) -> Dataset:
        """Those who leave with it.

        Raises:
          ValueError: their file cannot be read.
        """
        return unseen.read(self.run.dataset, self.events) if self.events else self.run.dataset

    @property
    def told(self) -> dict[str, Any]:
        """What the index of every format says of where it comes from."""
        return {"run": self.run.experiment.name, "system": self.name}

    def card(self, told: str) -> str:
        """A model card, which is `told` what the folder's files are."""
        run, system, experiment = self.run, self.system, self.run.experiment
        return CARD.format(
            name=f"{experiment.name}: {self.name}",
            told=told,
            dataset=experiment.data.name,
            streams=", ".join(system.streams) or "none",
            fusion=system.fusion,
            strategy=system.strategy,
            items=len(run.dataset.items.ids) - KNOWN,
            history=experiment.finetune.history,
            seed=experiment.seed,
            config=sealed.of_text(json.dumps(run.config, sort_keys=True)),
            results=self.results or "not judged",
        )


def write_decoder(leaving: Leaving, folder: Path) -> None:
    """Writes the language model and its tokenizer in Hugging Face's layout, and its adapter."""
    served, run = leaving.served, leaving.run
    tokenizer, params = served.tokenizer, served.params["decoder"]
    special = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    save_decoder(folder / DECODER, run.decoder_config, params, special=special)
    tokenizer.save(folder / DECODER)
    if leaving.adapter:
        base = str(Path("..", DECODER))
        save_adapter(folder / ADAPTER, served.told.system.lora, params, base=base)


def tested(data: Dataset) -> list[dict[str, Any]]:
    """The events of nobody: items drawn from those that there are, an hour apart."""
    drawn = np.random.default_rng(0).integers(KNOWN, len(data.items.ids), TESTED).tolist()
    begin, columns = data.origin or 0, {feature.column for feature in data.schema.of("event")}
    blank = dict.fromkeys((columns | {"rating", "review"}) - {"timestamp"})  # all else is missing
    return [
        {"item": data.items.ids[item], "timestamp": begin + 3600 * nth, **blank}
        for nth, item in enumerate(drawn)
    ]
