"""Names of TPU slices, against what Google's tables say of each, and libtpu of their devices."""

import pytest

from user_llm.launch import topology
from user_llm.launch.topology import CHIPS, parse

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
    made = parse(name)
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
        parse(name)


@pytest.mark.parametrize("name", ["v4:2x2x4", "v5e:4x4", "v5p:8x8x16", "v6e:4x4"])
def test_every_chip_is_a_device(name):
    place = parse(name)
    devices = place.devices()
    assert len(devices) == place.chips
    assert len({device.process_index for device in devices}) == place.hosts
    assert {tuple(x.coords)[: len(place.shape)] for x in devices} >= {(0,) * len(place.shape)}


def test_without_libtpu_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'user-llm\[tpu\]'"):
        parse("v5e:2x2").devices()


def test_links_are_those_of_the_axes_on_which_chips_differ():
    flat, cube = parse("v5e:8x16"), parse("v5p:2x2x4")
    assert flat.speed([(0, y, 0) for y in range(16)]) == 2 * 50e9  # 16 in a row are a ring
    assert flat.speed([(x, 0, 0) for x in range(8)]) == 50e9
    assert flat.speed([(x, y, 0) for x in range(8) for y in range(16)]) == 3 * 50e9
    assert cube.speed([(0, 0, 0), (1, 1, 3)]) == 4 * 100e9
    assert cube.speed([(1, 1, 3)]) == 100e9


def test_a_peak_is_that_of_the_clock():
    units = {"v4": 8, "v5e": 4, "v5p": 8, "v6e": 16}
    for kind, chip in CHIPS.items():
        assert chip.clock * units[kind] * 2 * 128**2 == pytest.approx(chip.flops, rel=3e-3)
