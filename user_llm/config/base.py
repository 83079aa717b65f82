"""What every part of an experiment is, and the words that several of them share."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """The base of every part: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Dtype = Literal["float32", "bfloat16"]
Remat = Literal["full", "dots", "none"]
Protocol = Literal["stable_leave_one_out", "sasrec_file", "last_ten", "by_time", "by_file"]
EncoderKind = Literal["autoregressive", "hstu", "bert4rec", "dual"]
Strategy = Literal["full", "encoder", "lora", "projection"]
Fusion = Literal["cross_attention", "soft_prompt", "interleaved", "none"]
STREAMS = ("timeline", "persona", "difference")  # built in, in the order of their memories
Retrieval = Literal["recency", "random", "bm25"]
Task = Literal[
    "next_item",
    "favorite_category",
    "future_favorite_category",
    "rating_prediction",
    "rating_among_peers",
    "review_generation",
    "LaMP_1",
    "LaMP_2",
    "LaMP_3",
    "LaMP_4",
    "LaMP_5",
    "LaMP_7",
    "LongLaMP_2",
    "LongLaMP_3",
    "LongLaMP_4",
]
