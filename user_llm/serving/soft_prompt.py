"""Users as prompt embeddings, for servers that know the decoder and nothing of users.

`decoder/` is the language model in Hugging Face's layout, and each user a tensor [M, D] of
`users/`, in the space of its embedded tokens: those of a user, then those of a prompt, are what
`inputs_embeds` of transformers and `prompt_embeds` of vLLM take. No encoder is needed for it.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from user_llm.data.text import Tokenizer
from user_llm.huggingface import import_decoder
from user_llm.inference.memories import Memories
from user_llm.models.decoder import Decoder
from user_llm.serving import sealed
from user_llm.serving.leaving import TESTED, Leaving, tested, write_decoder
from user_llm.serving.served import DECODER, SAME, TEST

FORMAT = "soft-prompt"
USERS, SHARD = "users", 4096
CARD = (
    "`decoder/` is the language model, which transformers loads; `users/` holds the tokens [M, D] "
    "of each user, which stand before an embedded prompt."
)
# These multiply what they are given as embeddings by the root of their width, in vLLM alone.
MULTIPLIED = ("gemma2",)


class SoftPrompts(NamedTuple):
    """Users' tokens, and the decoder whose embeddings they stand before."""

    decoder: Decoder
    tokenizer: Tokenizer
    files: Mapping[str, Path]  # of each user

    @staticmethod
    def load(folder: Path) -> "SoftPrompts":
        """What is in an export's folder.

        Raises:
          ValueError: the folder is not as it was written, or the decoder does not answer here as
            it did where it was exported.
        """
        told = sealed.opened(folder, FORMAT)
        decoder = import_decoder(folder / DECODER, **told["computing"])
        files = {}
        for path in sorted((folder / USERS).iterdir()):
            with safe_open(path, "numpy") as file:
                files |= dict.fromkeys(file.keys(), path)
        made = SoftPrompts(decoder, Tokenizer.load(folder / DECODER), files)
        found = load_file(folder / f"{TEST}.safetensors")
        prompt = json.loads((folder / f"{TEST}.json").read_text())["prompt"]
        logits = made.logits(found["memory"][0], prompt)
        if not np.abs(logits - (wanted := found["logits"][0])).max() <= SAME * np.abs(wanted).max():
            raise ValueError(
                f"{folder}: the logits of its self-test differ by "
                f"{np.abs(logits - wanted).max():.2g} from what was exported; export the run again"
            )
        return made

    def memory(self, user: str) -> Float[np.ndarray, "M D"]:
        """The tokens of a user.

        Raises:
          ValueError: nobody of that name left with the decoder.
        """
        if user not in self.files:
            raise ValueError(f"{user!r} is none of the {len(self.files)} users that were exported")
        with safe_open(self.files[user], "numpy") as file:
            return file.get_tensor(user)

    def embedded(self, prompt: Sequence[int]) -> Float[np.ndarray, "T D"]:
        """A prompt's tokens as the decoder's layers read them, scaled where its family does so."""
        return np.asarray(self.decoder.embed(jnp.array([prompt]))[0].astype(jnp.float32))

    def logits(self, memory: Float[np.ndarray, "M D"], prompt: Sequence[int]) -> np.ndarray:
        """Of each next token of a prompt [T, V] behind a user's tokens."""
        graphdef, state = nnx.split(self.decoder)
        whole = jnp.asarray(np.concatenate([memory, self.embedded(prompt)]))[None]

        @jax.jit
        def ask(state, x):
            decoder = nnx.merge(graphdef, state)
            x = decoder.hidden(x.astype(decoder.config.dtype))[:, len(memory) :]
            return decoder.logits(x).astype(jnp.float32)

        return np.asarray(ask(state, whole)[0])

    def prompt_embeds(self, user: str, prompt: Sequence[int]) -> str:
        """What vLLM's completions take as `prompt_embeds`: a user and a prompt behind it.

        Raises:
          ValueError: the user is not known, or torch is missing.
        """
        config = self.decoder.config
        root = config.hidden_size**0.5 if config.model_type in MULTIPLIED else 1.0
        return payload(self.memory(user), self.embedded(prompt), multiplied=root)


def payload(
    memory: Float[np.ndarray, "M D"],
    prompt_embeddings: Float[np.ndarray, "T D"],
    *,
    multiplied: float = 1.0,
) -> str:
    """A user's tokens and a prompt's embeddings as base64 of a tensor [M + T, D] by `torch.save`.

    Args:
      multiplied: by what the server multiplies embeddings that it is given.

    Raises:
      ValueError: torch is missing.
    """
    if find_spec("torch") is None:
        raise ValueError("prompt_embeds are a tensor of torch's; install the extra `test`")
    import torch  # takes seconds, and nothing else of serving needs it

    whole = np.concatenate([memory, prompt_embeddings]).astype(np.float32) / np.float32(multiplied)
    torch.save(torch.from_numpy(whole), file := io.BytesIO())
    return base64.b64encode(file.getvalue()).decode()


def write(leaving: Leaving, folder: Path) -> None:
    """Writes the decoder of a system that reads users as a soft prompt, and what it reads of them.

    Raises:
      ValueError: there is something already, the system cannot be exported (see `Leaving`), or it
        reads users otherwise.
    """
    system = leaving.system
    if not system.remembers or system.crossed or system.item_tokens:
        read = "item_tokens" if system.item_tokens else f"fusion={system.fusion!r}"
        raise ValueError(
            f"{leaving.name} has {read} and streams={system.streams}: as prompt embeddings leaves "
            'what is read by fusion="soft_prompt", with no tokens but words'
        )
    served, run, users = leaving.served, leaving.run, leaving.users
    asked = served.make_model, served.params
    memories = Memories(*asked, history=served.told.history, mesh=run.mesh)

    def fill(new: Path) -> None:
        write_decoder(leaving, new)
        (new / USERS).mkdir()
        for number, first in enumerate(range(0, len(users.users), SHARD)):
            some = users.some(first, min(first + SHARD, len(users.users)))
            tokens = memories.tokens(some, np.arange(len(some.users)))
            own = dict(zip(some.users, tokens, strict=True))
            save_file(own, new / USERS / f"users-{number:06d}.safetensors")
        prompt = list(range(min(TESTED, run.decoder_config.vocab_size)))
        save_file(served.answered(tested(served.dataset), prompt), new / f"{TEST}.safetensors")
        (new / f"{TEST}.json").write_text(json.dumps({"prompt": prompt}))
        (new / "README.md").write_text(leaving.card(CARD))

    told = {"users": len(users.users), "tokens": system.perceiver.latents + 1}
    told |= {"width": memories.width, "computing": served.told.decoder}
    sealed.sealed(folder, FORMAT, fill, leaving.told | told)
