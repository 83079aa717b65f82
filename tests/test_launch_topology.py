"""Topologies by name, and their devices from libtpu's own description."""

import pytest

from user_llm.launch import topology
from user_llm.launch.topology import CHIPS, parse


@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [("v4:2x2x4", 16, 4), ("v5e:4x4", 16, 4), ("v5p:8x8x16", 1024, 256), ("v6e:2x4", 8, 2)],
)
def test_every_chip_is_a_device(name, chips, hosts):
    place = parse(name)
    devices = place.devices()
    assert (place.chips, place.hosts) == (chips, hosts) == (len(devices), hosts)
    assert len({device.process_index for device in devices}) == hosts
    assert {tuple(x.coords)[: len(place.shape)] for x in devices} >= {(0,) * len(place.shape)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", r"name a kind of chip \(v4, v5e, v5p, v6e\) and its shape, as in v5e:16x16"),
        ("v5e", "name a kind of chip"),
        ("v5e:16", "name a kind of chip"),
        ("v5p:4x4", "v5p has 3 axes, as in v5p:4x4x4"),
        ("v5e:2x2x2", "v5e has 2 axes, as in v5e:4x4"),
        ("v5e:3x4", "hosts of 2x2 chips; take even sizes"),
        ("v5e:0x4", "take even sizes"),
        ("v5e:16x32", "512 chips are more than the 256 of the largest slice of v5e"),
        ("v5p:16x16x8", "2048 chips are more than the 1024"),
    ],
)
def test_unknown_topologies_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_without_libtpu_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'user-llm\[tpu\]'"):
        parse("v5e:2x2").devices()


def test_links_are_those_of_the_axes_on_which_chips_differ():
    flat, cube = parse("v5e:16x4"), parse("v5p:8x8x2")
    row = [(x, 0, 0) for x in range(16)]
    assert flat.speed(row) == 2 * 50e9  # 16 in a row are a ring
    assert flat.speed([(0, y, 0) for y in range(4)]) == 50e9
    assert flat.speed([(x, y, 0) for x in range(16) for y in range(4)]) == 3 * 50e9
    assert cube.speed([(0, 0, 0), (7, 7, 1)]) == 5 * 100e9
    assert cube.speed([(3, 3, 1)]) == 100e9


def test_a_peak_is_that_of_the_clock():
    units = {"v4": 8, "v5e": 4, "v5p": 8, "v6e": 16}
    for kind, chip in CHIPS.items():
        assert chip.clock * units[kind] * 2 * 128**2 == pytest.approx(chip.flops, rel=3e-3)
