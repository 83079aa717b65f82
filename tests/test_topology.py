"""Names of TPU slices, against what Google's tables of slices say of each."""

import pytest

from user_llm.launch import topology

# Chips, hosts, and the accelerator type of the TPU API.
TABLE = {
    "v5e:1x1": (1, 1, "v5litepod-1"),
    "v5e:2x2": (4, 1, "v5litepod-4"),
    "v5e:2x4": (8, 1, "v5litepod-8"),
    "v5e:4x4": (16, 4, "v5litepod-16"),
    "v5e:16x16": (256, 64, "v5litepod-256"),
    "v6e:8x16": (128, 32, "v6e-128"),
    "v4:2x2x1": (4, 1, "v4-8"),
    "v4:4x4x8": (128, 32, "v4-256"),
    "v5p:2x2x1": (4, 1, "v5p-8"),
    "v5p:2x2x2": (8, 2, "v5p-16"),
    "v5p:2x4x4": (32, 8, "v5p-64"),
    "v5p:4x4x4": (64, 16, "v5p-128"),
    "v5p:8x8x16": (1024, 256, "v5p-2048"),
    "v5p:16x16x24": (6144, 1536, "v5p-12288"),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_slice_is_what_the_tables_say(name):
    made = topology.parse(name)
    assert (made.chips, made.hosts, made.accelerator_type) == TABLE[name]
    assert made.chips == made.hosts * made.chips_per_host
    assert made.text == name.partition(":")[2]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v9:4x4", "one of v4, v5e, v5p, v6e"),
        ("4x4", "such as v5e:16x16"),
        ("v5e", "slices of 1x1, 2x2"),
        ("v5e:3x4", "slices of 1x1, 2x2"),
        ("v5e:16x8", "slices of 1x1, 2x2"),
        ("v6e:4x4x4", "slices of 1x1, 2x2"),
        ("v5p:4x4", "multiples of 4"),
        ("v5p:2x2x3", "multiples of 4"),
        ("v5p:4x4x6", "multiples of 4"),
        ("v5p:8x4x4", "A <= B <= C"),
        ("v5p:16x16x28", "6144 chips at most"),
        ("v4:16x16x20", "4096 chips at most"),
        ("v5p:4x4x04", "multiples of 4"),
        ("v5p:4x4x٤", "multiples of 4"),
    ],
)
def test_what_is_no_slice_is_refused_with_those_that_are(name, told):
    with pytest.raises(ValueError, match=told):
        topology.parse(name)
