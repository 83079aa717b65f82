"""Processes that are timed beside each other: their order, and how they fail."""

import pytest

from user_llm.evaluation import encoder_benchmark, sides
from user_llm.evaluation.peers.work import Work


def test_sides_take_turns():
    assert "".join(sides.turns("AB", 3, "")) == "ABBAAB"


def test_a_side_that_fails_says_why(tmp_path):
    with pytest.raises(ValueError, match="torch_sasrec failed:[^$]*no_such.npz"):
        sides.run(encoder_benchmark.SIDES["torch SASRec"], Work(str(tmp_path / "no_such.npz"), 3))
