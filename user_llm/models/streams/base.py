"""What a stream is, and what one may be built of."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from user_llm.config import (
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    SystemConfig,
    TextEncoderConfig,
)
from user_llm.models.layers import Memory


class Given(NamedTuple):
    """What is known where a stream is built: of its system, its data, and the models beside it."""

    system: SystemConfig
    decoder: DecoderConfig
    encoder: EncoderConfig
    features: tuple[FeatureConfig, ...]  # of events, as encoded; the item is the first
    items: Mapping[str, Any] | None = None  # features of all items [V, ...], by name
    text_encoder: TextEncoderConfig | None = None


@runtime_checkable
class Stream(Protocol):
    """Something that is known of users, as a memory: an NNX module made by `Stream(given, rngs=)`.

    A config names one's own `module:Class`. The module is looked for among what is installed, in
    the working directory, and beside the config; whoever opens the run again must find it, too.

    A batch holds, of B users and T events each, the newest last and padding at the end:

    * `events`: by name, every feature of `given.features` [B, T] int32, of a bag [B, T, K] with 0
      where a row ends, of a vector [B, T, D] float32; and every other column of the data set.
    * `segments` [B, T] int32: 0 where there is no event, else 1.
    * `embedding_length` [], where a stream is `embedded`: the mean length of the decoder's own.
    * `present`, of a system with a persona: `tokens` and `mask` of the text that is asked about.
    * `hint`, while a system is aligned: see `TimelineStream`.

    A memory is made before there is a prompt, so nothing of one is in it. Features that are named
    in `data.features` are read, or all. Another column, such as the raw times, is given by

        @staticmethod
        def columns(data: Dataset) -> dict[str, np.ndarray]

    whose arrays [events, ...] of float32, int32 or bool join `events` under their names. They may
    look at any event of `data`: that none tells of what comes after its own is up to the stream.

    A stream may have, besides:

    * `count`: how many tokens M its memory has, where it is always as many. A soft prompt takes
      no others, and reads all of them whatever the mask says.
    * `embedded`: that its tokens are in the space of the decoder's embeddings, and as wide. Those
      of others go through a projector first.
    * `own_loss(batch)`: what it adds to the loss of training, as a sum and over how many it is.

    What it calls `encoder` or `text_encoder` is frozen where the config says so of encoders.
    """

    width: int  # D of its tokens

    def __call__(self, batch: dict[str, Any]) -> Memory:
        """The tokens [B, M, D] of each user, and which of them there are [B, M]."""
        ...
