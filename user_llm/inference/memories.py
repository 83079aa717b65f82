"""What a system remembers of any users: the tokens that its decoder would read of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from user_llm.config import SystemConfig
from user_llm.data.dataset import Dataset
from user_llm.inference.recommend import batches
from user_llm.models.user_llm import UserLLM
from user_llm.sharding import batch_sharding


class Memories:
    """A system whose memory depends on a user's timeline alone, ready to be asked for it.

    Args:
      make_model: called with `rngs=`; its structure alone is used.
      params: the system's, on the mesh.
      history: events of a timeline that are read at most, the newest.
      batch_size: users at a time.

    Raises:
      ValueError: it reads something else, too, or nothing.
    """

    def __init__(
        self,
        make_model: Callable[..., UserLLM],
        params: dict,
        *,
        history: int,
        mesh: Mesh,
        batch_size: int = 128,
    ):
        model = nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0)))
        check_alone(model.system)
        graphdef, self.width = nnx.graphdef(model), model.decoder.config.hidden_size
        self.params, self.mesh, self.history = params, mesh, history
        self.parts = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = max(1, batch_size // self.parts) * self.parts

        @jax.jit
        def remember(params, events, segments):
            model = nnx.merge(graphdef, params)
            found = model.fuse(model.memories({"events": events, "segments": segments}))
            return found._replace(tokens=found.tokens.astype(jnp.float32))

        self._remember = remember

    def tokens(self, data: Dataset, users: Int[np.ndarray, " N"]) -> list[np.ndarray]:
        """Of each user of a data set the memory's tokens [M, W], those of its newest event last.

        Without a Perceiver there are as many as events.
        """
        found = [np.zeros((0, self.width), np.float32)] * len(users)
        sizes = self.history, self.batch_size, self.parts
        with jax.set_mesh(self.mesh):
            for places, sent in batches(data, users, *sizes):
                placed = jax.device_put(sent, batch_sharding(self.mesh))
                tokens, mask = map(np.asarray, self._remember(self.params, *placed))
                for place, own, there in zip(places, tokens, mask, strict=False):
                    found[place] = own[there]
        return found


def check_alone(system: SystemConfig) -> None:
    """Refuses a system that remembers of users what is not in their timelines, or nothing.

    Raises:
      ValueError: it is such a one.
    """
    if system.streams != ("timeline",) or not system.remembers:
        raise ValueError(
            f"a system with streams={system.streams} and fusion={system.fusion!r} has no memory of "
            "timelines alone"
        )
