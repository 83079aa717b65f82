"""A run's system as files that are served: here in Hugging Face's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from user_llm import stages
from user_llm.config import DecoderConfig, LoRAConfig
from user_llm.data import frame
from user_llm.data.dataset import Dataset
from user_llm.data.features import KNOWN
from user_llm.huggingface import save_adapter, save_decoder
from user_llm.models.layers import merged
from user_llm.runs import Run
from user_llm.serving import sealed
from user_llm.serving.served import (
    ADAPTER,
    DATA,
    DECODER,
    FORMAT,
    SYSTEM,
    TEST,
    USER,
    Served,
    Told,
    own_names,
)

TESTED = 12  # events and tokens of the self-test
CARD = """---
library_name: user-llm
pipeline_tag: text-generation
tags: [user-llm, user-embeddings, recommendation]
datasets: [{dataset}]
---

# {name}

A language model that reads a user's timeline as embeddings: streams {streams}, fusion {fusion},
trained by the strategy {strategy}. `decoder/` is the language model alone, which transformers
loads; `user_llm.serving.served.Served` reads this folder whole, and `export.json` says what each
file must be.

* data: {dataset}, {items:,} items
* events read of a user: the newest {history}
* seed {seed}; the experiment's hash is `{config}`

## Results

```text
{results}
```
"""


def export(
    run: Run, folder: Path, *, name: str = "user_llm", adapter: bool = False, results: str = ""
) -> None:
    """Writes a system of a run into a new folder, from which `Served.load` makes it again.

    Args:
      name: which of the run's systems.
      adapter: leaves the decoder as it was, with its LoRA beside it in PEFT's layout; else merged.
      results: what the model card says of how it was judged.

    Raises:
      ValueError: there is something already; the system is not fine-tuned, or reads of users what
        is not in their timelines; or an adapter is asked for and there is none.
    """
    if name not in run.systems:
        raise ValueError(f"the run has no system {name}; it has {', '.join(run.systems)}")
    system = run.systems[name]
    if not set(system.streams) <= {"timeline"}:
        raise ValueError(
            f"{name} reads {', '.join(system.streams)}; a system whose memory is of timelines "
            "alone can be exported"
        )
    if adapter and not system.lora.rank:
        raise ValueError(f"{name} has no adapter; leave --adapter out")
    params, decoder = stages.trained_system(run, name), run.decoder_config
    if system.lora.rank and not adapter:
        params = {**params, "decoder": merged(params["decoder"], system.lora)}
        system = system.model_copy(update={"strategy": "full", "lora": LoRAConfig()})
    computing = decoder.model_dump(mode="json", include=DecoderConfig.COMPUTING)
    history = run.experiment.finetune.history
    told = Told(
        system=system,
        encoder=run.experiment.encoder,
        decoder=computing,
        history=history,
        noun=run.experiment.data.noun,
    )
    data, tokenizer = frame.frame(run.dataset), run.tokenizer
    served = Served(told, run.make_model(system), params, data, tokenizer, "")

    def fill(new: Path) -> None:
        special = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
        save_decoder(new / DECODER, decoder, params["decoder"], special=special)
        tokenizer.save(new / DECODER)
        if adapter:
            base = str(Path("..", DECODER))
            save_adapter(new / ADAPTER, system.lora, params["decoder"], base=base)
        own = {name: np.asarray(x) for name, x in own_names(params).items()}
        save_file(own, new / USER)
        (new / SYSTEM).write_text(told.model_dump_json(indent=2) + "\n")
        frame.write(data, new / DATA)
        events, prompt = tested(data), list(range(min(TESTED, decoder.vocab_size)))
        save_file(served.answered(events, prompt), new / f"{TEST}.safetensors")
        (new / f"{TEST}.json").write_text(json.dumps({"events": events, "prompt": prompt}))
        (new / "README.md").write_text(card(run, name, results))

    sealed.sealed(folder, FORMAT, fill, {"run": run.experiment.name, "system": name})


def tested(data: Dataset) -> list[dict[str, Any]]:
    """The events of nobody: items drawn from those that there are, an hour apart."""
    drawn = np.random.default_rng(0).integers(KNOWN, len(data.items.ids), TESTED).tolist()
    begin, columns = data.origin or 0, {feature.column for feature in data.schema.of("event")}
    blank = dict.fromkeys((columns | {"rating", "review"}) - {"timestamp"})  # all else is missing
    return [
        {"item": data.items.ids[item], "timestamp": begin + 3600 * nth, **blank}
        for nth, item in enumerate(drawn)
    ]


def card(run: Run, name: str, results: str) -> str:
    """A model card."""
    system, experiment = run.systems[name], run.experiment
    return CARD.format(
        name=f"{experiment.name}: {name}",
        dataset=experiment.data.name,
        streams=", ".join(system.streams) or "none",
        fusion=system.fusion,
        strategy=system.strategy,
        items=len(run.dataset.items.ids) - KNOWN,
        history=experiment.finetune.history,
        seed=experiment.seed,
        config=sealed.of_text(json.dumps(run.config, sort_keys=True)),
        results=results or "not judged",
    )
