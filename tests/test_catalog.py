"""Catalogue decoding against brute force: every title scored whole by the training forward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_decoders import PECULIAR, random_decoder

from user_llm.config import CrossAttentionConfig, DecoderConfig
from user_llm.inference import trie
from user_llm.inference.catalog import Catalog, beam_search, score
from user_llm.inference.generate import Generator
from user_llm.models.layers import Memory

CONFIG = DecoderConfig(
    vocab_size=24,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
PROMPTS = [[5, 6, 7], [9, 3], list(range(3, 20))]
END = 2


def random_titles(count, seed=0, letters=4, longest=10):
    """Titles that share beginnings, of which some begin with others and two are alike."""
    rng = np.random.default_rng(seed)
    titles = [rng.integers(3, 3 + letters, rng.integers(1, 6)).tolist() for _ in range(count - 3)]
    titles += [titles[0], titles[1] + [3], rng.integers(3, 24, longest - 1).tolist()]
    return [[*title, END] for title in titles]


@pytest.fixture(scope="module")
def decoder():
    return random_decoder(CONFIG, cross_attention=CrossAttentionConfig(every=1, heads=2))


@pytest.fixture(scope="module")
def generator(decoder):
    return Generator(decoder)


def random_memory(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    shape = (len(PROMPTS), 4, CONFIG.hidden_size)
    return Memory(jax.random.normal(keys[0], shape), jax.random.bernoulli(keys[1], 0.7, shape[:2]))


def of_user(memory, row):
    return memory and Memory(memory.tokens[row : row + 1], memory.mask[row : row + 1])


def brute_force(decoder, titles, memory=None, prefix=None):
    """Each title's log-probability after each prompt, one prompt and title at a time."""
    longest = max(map(len, titles))

    @jax.jit
    def total(before, title, length, memory):
        x = jnp.concatenate([before, decoder.embed(title[None])], axis=1)
        logits = decoder.logits(decoder.hidden(x, memory))[0, before.shape[1] - 1 : -1]
        gains = jnp.take_along_axis(jax.nn.log_softmax(logits), title[:, None], axis=1)[:, 0]
        return jnp.where(jnp.arange(longest) < length, gains, 0.0).sum()

    scores = np.zeros((len(PROMPTS), len(titles)), np.float32)
    for row, prompt in enumerate(PROMPTS):
        before = decoder.embed(jnp.array([prompt], jnp.int32))
        if prefix is not None:
            before = jnp.concatenate([prefix.tokens[row][prefix.mask[row]][None], before], axis=1)
        own = of_user(memory, row)
        for item, title in enumerate(titles):
            padded = jnp.array(title + [0] * (longest - len(title)), jnp.int32)
            scores[row, item] = total(before, padded, len(title), own)
    return scores


def ranked(scores):
    """Items and scores, best first, ties by item."""
    items = np.argsort(-scores, axis=1, kind="stable")
    return items, np.take_along_axis(scores, items, axis=1)


@pytest.mark.parametrize("streams", ["nothing", "memory and prefix"])
def test_beam_as_wide_as_the_catalogue_finds_every_title_in_order(decoder, generator, streams):
    titles = random_titles(12, longest=20 if streams == "nothing" else 10)
    memory = random_memory(1) if "memory" in streams else None
    prefix = random_memory(2) if "prefix" in streams else None
    catalog = Catalog(titles, CONFIG.vocab_size)
    truth = brute_force(decoder, titles, memory, prefix)
    everything = score(generator, PROMPTS, catalog, memory=memory, prefix=prefix)
    np.testing.assert_allclose(everything, truth, atol=1e-4)
    items, scores = beam_search(generator, PROMPTS, catalog, beam=12, memory=memory, prefix=prefix)
    wanted, best = ranked(everything)
    np.testing.assert_array_equal(items, wanted)
    np.testing.assert_array_equal(scores, best)


def test_window_slides_over_prompt_and_title():
    decoder = random_decoder(CONFIG.model_copy(update=PECULIAR))
    titles = random_titles(12, longest=20)
    catalog = Catalog(titles, CONFIG.vocab_size)
    found = score(Generator(decoder), PROMPTS, catalog)
    np.testing.assert_allclose(found, brute_force(decoder, titles), atol=1e-4)


def plain_beam_search(decoder, prompt, titles, beam, allowed):
    """The same search as sets of strings, with a full forward for every prefix."""

    @jax.jit
    def next_log_probabilities(tokens, length):
        return jax.nn.log_softmax(decoder(tokens[None])[0, length - 1])

    prefixes = {(): 0.0}
    titles = {tuple(titles[i]) for i in allowed}
    for _ in range(max(map(len, titles)) + 1):
        grown = {}
        for prefix, value in prefixes.items():
            if prefix[-1:] == (None,):
                grown[prefix] = value
                continue
            if prefix in titles:  # also where others go on
                grown[*prefix, None] = value
            text = [*prompt, *prefix]
            padded = jnp.array(text + [0] * (48 - len(text)), jnp.int32)
            gains = next_log_probabilities(padded, len(text))
            children = {t[: len(prefix) + 1] for t in titles if t[: len(prefix)] == prefix}
            children -= {prefix}
            grown |= {child: value + float(gains[child[-1]]) for child in children}
        prefixes = dict(sorted(grown.items(), key=lambda x: -x[1])[:beam])
    return [prefix[:-1] for prefix in prefixes]


@pytest.mark.parametrize("ended", [True, False])
def test_narrow_beam_keeps_the_prefixes_that_a_plain_search_keeps(decoder, generator, ended):
    titles = random_titles(60) if ended else [title[:-1] for title in random_titles(60)]
    exclude = np.random.default_rng(3).random((len(PROMPTS), len(titles))) < 0.5
    catalog = Catalog(titles, CONFIG.vocab_size)
    items, _ = beam_search(generator, PROMPTS, catalog, beam=3, exclude=exclude)
    for row, prompt in enumerate(PROMPTS):
        allowed = np.flatnonzero(~exclude[row])
        kept = plain_beam_search(decoder, prompt, titles, 3, allowed)
        wanted = [i for title in kept for i in allowed if tuple(titles[i]) == title]
        assert items[row].tolist() == wanted[:3]


def test_beam_narrows_and_widens_with_the_unfinished(generator):
    titles = [[3, END], [4, *([3] * 3), END], *([4, 5, *([3] * 3), i, END] for i in range(6, 16))]
    items, scores = beam_search(generator, PROMPTS, Catalog(titles, CONFIG.vocab_size), beam=12)
    everything = score(generator, PROMPTS, Catalog(titles, CONFIG.vocab_size))
    np.testing.assert_array_equal(items, ranked(everything)[0])
    assert np.isfinite(scores).all()


def test_excluded_items_are_never_returned_and_take_no_place(generator):
    titles = random_titles(12)
    exclude = np.random.default_rng(4).random((len(PROMPTS), 12)) < 0.6
    exclude[1] = True
    exclude[1, [0, 9]] = [True, False]  # one of two that are alike
    everything = score(generator, PROMPTS, Catalog(titles, CONFIG.vocab_size))
    wanted, best = ranked(np.where(exclude, -np.inf, everything))
    items, scores = beam_search(
        generator, PROMPTS, Catalog(titles, CONFIG.vocab_size), beam=12, exclude=exclude
    )
    kept = np.isfinite(best)
    np.testing.assert_array_equal(items, np.where(kept, wanted, -1))
    np.testing.assert_allclose(scores, best, atol=1e-5)
    assert items[1].tolist() == [9] + [-1] * 11


@pytest.mark.parametrize("shape", [(3, 11), (2, 12), (3,)])
def test_exclusion_of_another_shape_is_refused(generator, shape):
    catalog = Catalog(random_titles(12), CONFIG.vocab_size)
    with pytest.raises(ValueError, match=r"want \(3, 12\) or \(12,\)"):
        beam_search(generator, PROMPTS, catalog, beam=3, exclude=np.zeros(shape, bool))


def test_items_of_the_same_tokens_come_by_number(generator):
    titles = [[4, END], [3, END], [4, END], [5, 3, END], [4, END]]
    items, scores = beam_search(generator, PROMPTS, Catalog(titles, CONFIG.vocab_size), beam=5)
    for row, points in zip(items.tolist(), scores.tolist(), strict=True):
        assert [i for i in row if i in (0, 2, 4)] == [0, 2, 4]
        assert sorted(row) == [0, 1, 2, 3, 4]
        assert points[row.index(0)] == points[row.index(2)] == points[row.index(4)]


def test_user_alone_gets_what_the_batch_gave(generator):
    titles, memory = random_titles(60), random_memory(1)
    catalog = Catalog(titles, CONFIG.vocab_size)
    items, scores = beam_search(generator, PROMPTS, catalog, beam=3, memory=memory)
    item, value = beam_search(generator, PROMPTS[1:2], catalog, beam=3, memory=of_user(memory, 1))
    np.testing.assert_array_equal(item[0], items[1])
    np.testing.assert_allclose(value[0], scores[1], atol=1e-5)


@pytest.fixture(scope="module")
def likelihoods(decoder):
    """Log-probabilities of titles of few tokens, a dozen at most, after each prompt."""

    @jax.jit
    def total(tokens, title):
        gains = jax.nn.log_softmax(decoder(tokens)[:, :-1])
        gains = jnp.take_along_axis(gains, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(title[:, 1:], gains, 0.0).sum(1)

    def score_titles(titles):
        tokens = np.zeros((len(PROMPTS), 12, 24), np.int32)
        title = np.zeros(tokens.shape, bool)
        for row, prompt in enumerate(PROMPTS):
            for item, own in enumerate(titles):
                tokens[row, item, : len(prompt) + len(own)] = prompt + own
                title[row, item, len(prompt) : len(prompt) + len(own)] = True
        found = total(tokens.reshape(-1, 24), title.reshape(-1, 24))
        return np.asarray(found).reshape(len(PROMPTS), 12)[:, : len(titles)]

    return score_titles


title = st.lists(st.integers(3, 5), min_size=1, max_size=4)


@settings(max_examples=10)
@given(
    titles=st.lists(title, min_size=1, max_size=12),
    entries=st.sampled_from([0, 25, 100, 2**24]),  # no dense level, the root, some, all
    rows=st.sampled_from([0, 1, len(PROMPTS)]),
    seed=st.integers(0, 9),
)
def test_any_catalogue_ranks_as_brute_force(generator, likelihoods, titles, entries, rows, seed):
    hidden = np.random.default_rng(seed).random((rows, len(titles))) < 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie, "DENSE", entries)
        patch.setattr(trie, "SPARSE", CONFIG.vocab_size)
        catalog = Catalog(titles, CONFIG.vocab_size)
    search = partial(beam_search, generator, PROMPTS, catalog, exclude=hidden if rows else None)
    truth = likelihoods(titles)
    truth = np.where(hidden, -np.inf, truth) if rows else truth
    items, scores = search(beam=12)
    items, scores = items[:, : len(titles)], scores[:, : len(titles)]
    _, best = ranked(truth)
    np.testing.assert_allclose(scores, best, atol=1e-4)
    kept = items >= 0
    np.testing.assert_array_equal(kept, np.isfinite(best))
    own = np.take_along_axis(truth, items, axis=1)
    np.testing.assert_allclose(own[kept], scores[kept], atol=1e-4)
    for row, chosen in zip(items, kept, strict=True):
        assert len(set(row[chosen])) == chosen.sum()


@pytest.mark.parametrize(
    ("titles", "end", "within"),
    [
        ([[3, END], [3, 4, END]], END, {3, 4}),
        ([[END]], END, set()),
        ([[3, END], [3, 4]], None, {3}),
        ([[3, END], [3, END, 4, END]], None, {3, END, 4}),  # one begins with another
        ([[3, END, 4, END]], None, {3, END, 4}),
    ],
)
def test_a_catalogue_knows_what_its_items_end_with(titles, end, within):
    catalog = Catalog(titles, CONFIG.vocab_size)
    assert (catalog.end, catalog.within) == (end, within)


def test_one_row_of_exclusions_is_for_all(generator):
    catalog = Catalog(random_titles(12), CONFIG.vocab_size)
    hidden = np.random.default_rng(5).random(12) < 0.5
    search = partial(beam_search, generator, PROMPTS, catalog, beam=12)
    each = search(exclude=np.tile(hidden, (len(PROMPTS), 1)))
    for exclude in (hidden, hidden[None]):
        for one, other in zip(search(exclude=exclude), each, strict=True):
            np.testing.assert_array_equal(one, other)
