"""A system as it was exported, with all that is needed to answer: no run and no data set.

In its folder lie `decoder/`, the language model and its tokenizer in Hugging Face's layout;
`adapter/`, where its LoRA was not merged, in PEFT's; `user.safetensors`, all else of the system;
`system.json`, how its parts are built; `data/`, how events become numbers; and `selftest.*`, what
the system answered when it was exported.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from user_llm.config import Config, EncoderConfig, SystemConfig
from user_llm.data import frame, unseen
from user_llm.data.dataset import Dataset
from user_llm.data.text import Tokenizer
from user_llm.huggingface import decoder_config, load_adapter, load_decoder
from user_llm.huggingface.tensors import by_name, name_of
from user_llm.models.user_llm import UserLLM
from user_llm.serving import sealed

FORMAT = "huggingface"
DECODER, ADAPTER, USER, DATA = "decoder", "adapter", "user.safetensors", "data"
SYSTEM, TEST = "system.json", "selftest"
SAME = 1e-4  # of the greatest value, what answers may differ by from one machine to another


class Told(Config):
    """How the parts of a system are built, beside what the decoder's folder and the data say."""

    system: SystemConfig
    encoder: EncoderConfig
    decoder: dict[str, Any]  # the fields of its config by which it computes
    history: int  # events that are read at most
    noun: str = "item"  # what questions call an item


class SelfTest(NamedTuple):
    """A user and a prompt, and what the system made of them."""

    events: list[dict[str, Any]]
    prompt: list[int]
    found: dict[str, np.ndarray]


class Served(NamedTuple):
    """An exported system."""

    told: Told
    make_model: partial[UserLLM]
    params: dict[str, Any]
    dataset: Dataset  # without users
    tokenizer: Tokenizer
    version: str  # one for every other content of the folder

    @staticmethod
    def load(folder: Path) -> "Served":
        """The system in an export's folder.

        Raises:
          ValueError: the folder is not as it was written, or the system does not answer here as it
            did where it was exported.
        """
        index = sealed.opened(folder, FORMAT)
        told = Told.model_validate_json((folder / SYSTEM).read_text())
        data = frame.read(folder / DATA)
        config = decoder_config(folder / DECODER).model_copy(update=told.decoder)
        content = {
            "trained": np.zeros(len(data.items.ids), bool),  # the parameters say which
            **data.items.features,
        }
        make_model = partial(UserLLM, told.system, config, told.encoder, data.inputs, content)
        wanted = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
        params = nnx.to_pure_dict(nnx.state(wanted))
        decoder = load_decoder(folder / DECODER, params["decoder"])
        if (folder / ADAPTER).is_dir():
            decoder = load_adapter(folder / ADAPTER, told.system.lora, decoder)
        params = with_own({**params, "decoder": decoder}, load_file(folder / USER))
        version = sealed.of_text(json.dumps(index["files"], sort_keys=True))
        tokenizer = Tokenizer.load(folder / DECODER)
        served = Served(told, make_model, params, data, tokenizer, version)
        served.check(read_test(folder), folder)
        return served

    def answered(self, events: list[dict[str, Any]], prompt: list[int]) -> dict[str, np.ndarray]:
        """The `memory` of a user with such raw events, if any is read, and a prompt's `logits`."""
        data = unseen.encode(self.dataset, [events])
        read = np.arange(len(data.item))[None, -self.told.history :]
        batch = {
            "events": data.gather(read),
            "segments": np.ones_like(read, np.int32),
            "tokens": np.array([prompt], np.int32),
        }
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: self.make_model(rngs=nnx.Rngs(0))))

        @jax.jit
        def ask(params, batch):
            model = nnx.merge(graphdef, params)
            memory = model.fuse(model.memories(batch))
            found = {"logits": model.speaker().logits(model.read(batch, memory))}
            found |= {} if memory is None else {"memory": memory.tokens}
            return jax.tree.map(lambda x: x.astype(jnp.float32), found)

        return jax.tree.map(np.asarray, ask(self.params, jax.tree.map(jnp.asarray, batch)))

    def check(self, test: SelfTest, folder: Path) -> None:
        """Refuses a system that no longer answers as it did.

        Raises:
          ValueError: naming what differs, and by how much.
        """
        for name, x in self.answered(test.events, test.prompt).items():
            wanted = test.found[name]
            difference = float(np.abs(x - wanted).max(initial=0))
            if x.shape != wanted.shape or difference > SAME * np.abs(wanted).max(initial=1e-9):
                raise ValueError(
                    f"{folder}: the {name} of its self-test differ by {difference:.2g} from what "
                    "was exported; export the run again with this release, or serve it with its own"
                )


def own_names(params: dict[str, Any]) -> dict[str, Any]:
    """By dotted names the parameters that Hugging Face's layout has no place for."""
    return {
        name: x
        for name, x in by_name(params).items()
        if not name.startswith("decoder.") or name.startswith("decoder.cross.")
    }


def with_own(params: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with these in their places."""

    def fill(path: tuple, x: Any) -> Any:
        return jnp.asarray(own[name]) if (name := name_of(path)) in own else x

    return jax.tree.map_with_path(fill, params)


def read_test(folder: Path) -> SelfTest:
    said = json.loads((folder / f"{TEST}.json").read_text())
    return SelfTest(said["events"], said["prompt"], load_file(folder / f"{TEST}.safetensors"))
