"""Which data set is read, how it is split, and what is known of its events."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from user_llm.config.base import Config, Protocol


class SourceConfig(Config):
    """A data set whose timelines LaMP's questions are made of."""

    name: str = "world"  # as data.name, and so on
    version: str = ""
    source: str = ""
    users: PositiveInt = 2000
    first_users: NonNegativeInt = 0
    profile: PositiveInt = 512  # entries, the newest
    questions: PositiveInt = 1  # of a user for training at most


class DataConfig(Config):
    """Which built data set is read, and how its timelines are split.

    `stable_leave_one_out`: each user's last event is the test target and the one before it
    validation's; events of the same time stay in the order of the file. `sasrec_file`: the same
    without users and items of fewer than five events, as SASRec's files (arXiv 1808.09781) are.
    `last_ten`: the same, but training asks about the eight events before those two alone, and the
    ones before are the profile (DPL, arXiv 2503.02450).
    `by_time`: the last `test_share` of all events by time is test, as much before it validation.
    `by_file`: of LaMP, whose files say which questions train; test are those of `test` if they come
    with answers, else those of `dev`, which is validation in any case.
    """

    # Or movielens, amazon_reviews, google_local, lamp, sequences, table; or crowd, to measure on.
    name: str = "world"
    version: str = ""  # the builder's variant, such as 1m
    source: str = ""  # raw files, below $USER_LLM_DATA unless absolute; the world needs none
    made_from: SourceConfig | None = None  # of lamp: instead of a source in LaMP's layout
    noun: str = "film"  # what questions call an item
    users: PositiveInt = 2000  # of the world, or of the crowd
    features: tuple[str, ...] = ()  # the event features that the encoder reads; empty: all
    # A text encoder's folder, below $USER_LLM_DATA unless absolute, or the name of a package that
    # brings one. Its vectors of what users wrote are a feature of the events, `text_vector`.
    text_encoder: str = ""
    protocol: Protocol = "stable_leave_one_out"
    first_users: NonNegativeInt = 0  # in the order of the data set; 0: all
    min_count: NonNegativeInt = 0  # users and items with fewer events are dropped
    damaged: float = Field(default=0.001, ge=0, lt=1)  # share of users that may be unreadable
    test_share: float = Field(default=0.1, gt=0, lt=0.5)
    held_out_users: float = Field(default=0.0, ge=0, lt=1)  # share of users never seen in training
    held_out_items: float = Field(default=0.0, ge=0, lt=1)  # share of items never seen in training
    seed: int = 0

    @property
    def fewest(self) -> int:
        """The events that a user and an item must have to be kept."""
        return max(self.min_count, 5 if self.protocol == "sasrec_file" else 0)


TEXT_VECTOR = "text_vector"  # the feature that holds a text encoder's vector of an event's review
# The column of what sets an event apart from peers': a vector, and 1 where there were any.
DIFFERENCE = "difference"
# Columns of a batch's events beside the features, in seconds on one clock for the whole data set.
EVENT_TIME = "event_time"  # [B, T]: when an event was
QUERY_TIME = "query_time"  # [B, T]: when the one after it was, or is asked for


class FeatureConfig(Config):
    """What an encoder must know of one event feature.

    `categorical` is int32 [B, T]: 0 missing, 1 out of vocabulary, from 2 on the known values. `bag`
    is int32 [B, T, K] with 0 for an empty slot. `vector` is float32 [B, T, size].
    """

    name: str
    kind: Literal["categorical", "bag", "vector"]
    size: PositiveInt  # rows of the embedding table, or the vector's width
    predicted: bool = False  # the next event's value is a target of pre-training
