"""The trie as a table: it spells the sequences, by dense rows as by consecutive children."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.inference import trie

VOCAB = 8


def compiled(sequences, entries=2**24):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie, "DENSE", entries)
        patch.setattr(trie, "SPARSE", VOCAB)
        table, fans = trie.compile_trie(*trie.flatten(sequences, VOCAB), VOCAB)
    return jax.tree.map(np.asarray, table), fans


@settings(max_examples=100)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=30),
    st.sampled_from([0, 9, 60, 2**24]),
)
def test_table_spells_every_sequence_and_nothing_else(sequences, entries):
    table, fans = compiled(sequences, entries)
    assert table.dense.size <= entries

    def spell(node, text):
        children = range(table.child[node], table.child[node] + table.degree[node])
        if not children:
            below = table.items[table.low[node] : table.high[node]]
            yield from ((int(item), text) for item in below)
        else:
            assert fans[len(text)] == 0 or len(children) <= fans[len(text)]
            assert (fans[len(text)] == 0) == (node < len(table.dense))
        assert table.inner[node] == (table.degree[children] > 0).sum()
        if node < len(table.dense):
            edges = {int(table.token[child]) % (VOCAB + 1): child for child in children}
            row = table.dense[node]
            assert {int(edge): row[edge] for edge in row.nonzero()[0]} == edges
        for child in children:
            assert table.low[node] <= table.low[child] < table.high[child] <= table.high[node]
            token = int(table.token[child])
            yield from spell(child, [*text, token] if token >= 0 else text)

    spelled = list(spell(0, []))
    assert sorted(spelled) == list(enumerate(sequences))
    assert [text for _, text in spelled] == sorted(sequences)


@pytest.mark.parametrize("entries", [0, 9, 60, 2**24])
def test_every_walk_is_along_a_sequence(entries):
    rng = np.random.default_rng(0)
    sequences = [[*rng.integers(0, 5, rng.integers(4)).tolist(), VOCAB - 1] for _ in range(30)]
    table, fans = compiled(sequences, entries)
    table, fan, tokens = jax.tree.map(jnp.asarray, table), max(fans), jnp.arange(VOCAB)
    walks = {(): 0}
    for depth in range(len(fans)):
        nodes = jnp.asarray([-1, *walks.values()], jnp.int32)
        following = np.asarray(trie.allowed(table, nodes, fan, VOCAB))
        every = jnp.repeat(nodes, VOCAB), jnp.tile(tokens, len(nodes))
        to = np.asarray(trie.stepped(table, *every, fan)).reshape(following.shape)
        assert following[0].all() and (to[0] == -1).all()
        grown = {}
        for row, walk in enumerate(walks, start=1):
            wanted = {tuple(x[: depth + 1]) for x in sequences if tuple(x[:depth]) == walk}
            assert {(*walk, int(token)) for token in following[row].nonzero()[0]} == wanted
            grown |= {longer: int(to[row, longer[-1]]) for longer in wanted}
        assert {walk for walk, node in grown.items() if node < 0} == {
            tuple(x) for x in sequences if len(x) == depth + 1
        }
        walks = {walk: node for walk, node in grown.items() if node >= 0}
    assert not walks


def test_an_array_is_the_same_as_lists():
    sequences = np.random.default_rng(0).integers(0, VOCAB, (40, 3))
    for one, other in zip(compiled(sequences)[0], compiled(sequences.tolist())[0], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[3, 2], []], "item 1 has no tokens"),
        ([[3, 2], [3, 9], [-1, 1, 8]], r"item 1 has tokens \[9\].*item 2 has tokens \[-1, 8\]"),
        ([[], [9], *[[]] * 7], "item 0 .*item 2 .*item 3 .*item 1 has .*; 5 more are like these"),
        ([], "empty"),
    ],
)
def test_sequences_are_refused(sequences, message):
    with pytest.raises(ValueError, match=message):
        trie.flatten(sequences, VOCAB)
