"""An experiment is a frozen value that refuses what it does not know."""

import re

import pytest
from pydantic import BaseModel, ValidationError

from user_llm import config
from user_llm.config import (
    CrossAttentionConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    Experiment,
    FinetuneConfig,
    MeshConfig,
    OptimConfig,
)

PARTS = [
    part
    for part in vars(config).values()
    if isinstance(part, type) and issubclass(part, BaseModel) and part is not BaseModel
]


def test_an_experiment_survives_json():
    experiment = Experiment(
        name="x",
        data=DataConfig(features=("item", "genre"), protocol="by_time"),
        finetune=FinetuneConfig(tasks={"next_item": 0.7, "review_generation": 0.3}),
    )
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_part_is_frozen_and_refuses_unknown_fields(part):
    assert part.model_config["frozen"]
    with pytest.raises(ValidationError, match="no_such_field"):
        part(no_such_field=1)


def test_a_field_cannot_be_reassigned():
    with pytest.raises(ValidationError, match="frozen"):
        Experiment(name="x").seed = 1


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        (CrossAttentionConfig, {"gate": 1.0}),
        (DataConfig, {"protocol": "random"}),
        (DataConfig, {"test_share": 0.5}),
        (DataConfig, {"held_out_users": 1.0}),
        (EncoderConfig, {"dropout": 1.0}),
        (EncoderConfig, {"layers": 0}),
        (EncoderConfig, {"dtype": "float16"}),
        (FinetuneConfig, {"tasks": {"next_itme": 1.0}}),
        (MeshConfig, {"tensor": 0}),
        (OptimConfig, {"learning_rate": 0.0}),
        (OptimConfig, {"clip": -1.0}),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(part, fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        part(**fields)


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (EncoderConfig, {"embed": 64, "heads": 3}, "encoder.embed=64 must be a multiple"),
        (EncoderConfig, {"embed": 6, "heads": 2}, "encoder.embed=6 must be a multiple"),
        (CrossAttentionConfig, {"heads": 4, "kv_heads": 3}, "heads=4 must be a multiple of kv"),
        (
            DecoderConfig,
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            "num_attention_heads=4 must be a multiple of num_key_value_heads=3",
        ),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_both_values(part, fields, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        part(**fields)


def test_the_sasrec_protocol_drops_what_is_rare():
    assert DataConfig(protocol="sasrec_file").fewest == 5
    assert DataConfig(protocol="sasrec_file", min_count=9).fewest == 9
    assert DataConfig().fewest == 0


def test_all_problems_are_reported_at_once():
    with pytest.raises(ValidationError) as caught:
        Experiment(name="x", seed="many", mesh={"fsdp": 0}, optim={})
    assert {error["loc"] for error in caught.value.errors()} == {
        ("seed",),
        ("mesh", "fsdp"),
        ("optim",),
    }


def test_a_history_that_the_encoder_cannot_see_is_refused():
    short = {"name": "x", "encoder": EncoderConfig(window=8)}
    with pytest.raises(ValidationError, match=r"finetune.history=9 .* encoder.window=8 events"):
        Experiment(**short, finetune=FinetuneConfig(history=9))
    Experiment(**short, finetune=FinetuneConfig(history=8))
    Experiment(**short, finetune=FinetuneConfig(history=9), system={"streams": ()})
    config.encoder_only(**short)
