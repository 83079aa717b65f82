"""What a system's streams know of a user, and how it becomes tokens."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from user_llm.config.base import Config


class PerceiverConfig(Config):
    """Learned latents that compress a stream; 0 latents hand its tokens on as they are."""

    latents: NonNegativeInt = 16
    layers: PositiveInt = 2
    heads: PositiveInt = 4


class PersonaConfig(Config):
    """Persona-Plug (arXiv 2409.11901): a user's past texts, weighed by how like the present one.

    The paper's own setting is `PersonaConfig.paper()`: there similarities of unit vectors are not
    sharpened, so that its weights are close to a mean's.
    """

    weights: Literal["attention", "mean"] = "attention"
    # What similarities are divided by, at first: several give several weighted sums side by side,
    # such as one of a few texts and one of nearly all.
    temperatures: tuple[PositiveFloat, ...] = Field(default=(0.1,), min_length=1)
    learned_temperature: bool = True
    tokens: PositiveInt = 1  # that a weighted sum becomes
    instruction: bool = True  # a token that is the same for everyone stands before them
    labels: bool = False  # what past texts are labelled with, their events' item, joins them
    matched: bool = True  # tokens are as long as the decoder's own embeddings, at first exactly
    query: str = ""  # what the present text is read after, such as BGE's instruction for queries
    query_tokens: PositiveInt = 256  # of the present text with it, at most

    @property
    def width(self) -> int:
        """The tokens that all past texts become, with the instruction's."""
        sums = len(self.temperatures) if self.weights == "attention" else 1
        return sums * self.tokens + self.instruction

    @classmethod
    def paper(cls, **parts: Any) -> "PersonaConfig":
        """As published, but for the parts that are given."""
        return cls(temperatures=(1.0,), learned_temperature=False, matched=False, **parts)


class PeerConfig(Config):
    """With whom a user is compared at an event: others who had its item before, the newest.

    As controls, `random` ones among these, those whose vectors are `least_similar`, and as many
    random earlier events of others, `shuffled`; `none` leaves all differences zero.
    """

    chosen: Literal["newest", "random", "least_similar", "representatives", "shuffled", "none"] = (
        "newest"
    )
    most: PositiveInt = 16  # at an event
    # How much each counts: alike, by how far the users are from each other (DEP's form, arXiv
    # 2507.20849), or by how near they are, as a softmax of distances over the temperature has it.
    weights: Literal["uniform", "distance", "softmax"] = "uniform"
    temperature: PositiveFloat = 1.0


class DifferenceConfig(Config):
    """What sets a user's events apart from those of others at the same items (arXiv 2507.20849).

    `DifferenceConfig.dep()` is that paper's setting, but that nothing of it may come later: neither
    peers nor what a user's mean is of. And peers are the newest 512, and the newest events are
    read, where the authors take all, and the newest events that have a peer.
    """

    vectors: Literal["encoder", "text"] = "encoder"  # of events, or of what was written of them
    peers: PeerConfig = PeerConfig()
    events: PositiveInt = 50  # whose differences are read, the newest
    own: bool = False  # the events' own vectors are read beside them
    compressor: Literal["perceiver", "autoencoder"] = "perceiver"
    perceiver: PerceiverConfig = PerceiverConfig(latents=8, layers=1)
    code: PositiveInt = 512  # numbers that the sparse autoencoder makes of a vector
    sparsity: float = Field(default=0.05, gt=0, lt=1)  # the mean that a number should have
    reconstruction: float = Field(default=100.0, ge=0)  # weight of the autoencoder's losses
    sparse: float = Field(default=1e-3, ge=0)  # of sparsity among them

    @property
    def width(self) -> int:
        """The tokens that they become."""
        if self.compressor == "perceiver":
            return self.perceiver.latents
        return self.places[0] * self.places[1]

    @property
    def places(self) -> tuple[int, int]:
        """The events of which an autoencoder makes tokens, and how many each has."""
        return self.events, 1 + self.own

    @classmethod
    def dep(cls, **parts: Any) -> "DifferenceConfig":
        """As published, but for the parts that are given."""
        published: dict[str, Any] = {
            "vectors": "text",
            "peers": PeerConfig(most=512, weights="distance"),
            "events": 8,
            "own": True,
            "compressor": "autoencoder",
        }
        return cls(**{**published, **parts})

    @model_validator(mode="after")
    def _consistent(self):
        if self.own and self.vectors != "text":
            raise ValueError(
                "difference.own reads texts' own vectors beside their differences; those of an "
                'encoder are the timeline stream: set vectors to "text", or own to false'
            )
        if self.compressor == "perceiver" and not self.perceiver.latents:
            raise ValueError("difference.perceiver.latents must be 1 at least")
        return self
