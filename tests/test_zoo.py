"""Named sizes: they are built as they say, and count what they hold."""

from itertools import pairwise

import jax
import pytest
from flax import nnx

from user_llm.config import FeatureConfig
from user_llm.models import zoo
from user_llm.models.encoders import ENCODERS


@pytest.mark.parametrize("kind", ["hstu", "bert4rec"])
def test_parameters_are_counted_as_they_are_in_a_real_model(kind):
    config = zoo.encoder("tiny", kind, layers=3)
    item = FeatureConfig(name="item", kind="categorical", size=100, predicted=True)
    model = ENCODERS[kind](config, (item,), rngs=nnx.Rngs(0))
    total = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    tables, rest = zoo.count_parameters(config, 100)
    bias = 100 if kind == "bert4rec" else 0
    assert (tables, tables + rest) == (100 * 64 + bias, total)


def test_sizes_grow_and_are_all_in_the_table():
    counts = [
        zoo.count_parameters(zoo.encoder(size), 1000)[1]
        for size in ("tiny", "small", "base", "large")
    ]
    assert all(4 * a < b for a, b in pairwise(counts))
    lines = zoo.table(1000).splitlines()
    assert len(lines) == 1 + 4 * len(ENCODERS) + 2
    (large,) = (line for line in lines if line.startswith("large") and "autoregressive" in line)
    assert f"{counts[-1]:,}" in large
    assert "512,000" in large


def test_an_unknown_size_names_those_there_are():
    with pytest.raises(ValueError, match="no size is named 'huge'; choose from tiny, small"):
        zoo.encoder("huge")
