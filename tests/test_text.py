"""Tokens of prompts and answers, their padding, and rows of joined documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_llm.data.text import Tokenizer, Unfolding, join, pad

TEXTS = [
    "Heat (1995), a film of many words.",
    "Amélie (2001): she's shy, isn't she ?",
    "It's quiet , too quiet . They 're coming !",
    "日本語 and 7½ more — end",
    "The next film:",
] * 3
PROMPT = "The favorite genre:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.train(TEXTS, 320, folder)


def test_a_trained_tokenizer_keeps_to_its_size_and_loads_as_it_was(tokenizer, folder):
    assert 258 < len(tokenizer) <= 320
    loaded = Tokenizer.load(folder)
    assert len(loaded) == len(tokenizer)
    assert loaded.prompts(TEXTS) == tokenizer.prompts(TEXTS)
    assert loaded.answers(TEXTS) == tokenizer.answers(TEXTS)
    assert (loaded.bos, loaded.eos) == (tokenizer.bos, tokenizer.eos) == (0, 1)


def test_prompts_begin_and_answers_end_with_their_own_token(tokenizer):
    for ids in tokenizer.prompts(TEXTS):
        assert ids[0] == tokenizer.bos
        assert not {tokenizer.bos, tokenizer.eos} & set(ids[1:])
    for ids in tokenizer.answers(TEXTS):
        assert ids[-1] == tokenizer.eos
        assert not {tokenizer.bos, tokenizer.eos} & set(ids[:-1])
    assert tokenizer.prompts([]) == tokenizer.answers([]) == []


def test_an_answer_has_the_same_tokens_in_any_company(tokenizer):
    together = tokenizer.answers(TEXTS)
    assert together == [tokenizer.answers([text])[0] for text in TEXTS]


def test_prompt_and_answer_join_to_the_text_of_both(tokenizer):
    ids = tokenizer.prompts([PROMPT])[0] + tokenizer.answers(["Heat (1995)"])[0]
    assert tokenizer.decode(ids) == f"{PROMPT} Heat (1995)"


@pytest.mark.parametrize("text", [*TEXTS[:5], "x", "unseen wörds", "two  spaces", "a\nb"])
def test_decode_gives_an_answer_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.answers([text])[0]) == text


@given(st.text(st.characters(exclude_categories=["Cs"])).map(str.strip))
def test_decode_gives_any_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.answers([text])[0]) == text


@given(st.lists(st.integers(0, 340), max_size=24))
def test_an_answer_unfolds_to_what_its_tokens_say_together(tokenizer, ids):
    unfolding = Unfolding(tokenizer)
    for count, token in enumerate(ids, 1):  # from 320 on, the tokenizer has no names for them
        text, settled = unfolding.add(token)
        assert text == tokenizer.decode(ids[:count])
        assert text.startswith(settled)


def test_an_answer_unfolds_so_where_tokens_are_words_or_bytes(data_folder):
    tokenizer = Tokenizer.load(data_folder / "models" / "stories260K")
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = rng.choice(len(tokenizer), 60).tolist()
        unfolding = Unfolding(tokenizer)
        for count, token in enumerate(ids, 1):
            text, settled = unfolding.add(token)
            assert text == tokenizer.decode(ids[:count])
            assert text.startswith(settled)


def test_a_tokenizer_that_writes_the_space_itself_gets_none(data_folder):
    tokenizer = Tokenizer.load(data_folder / "models" / "stories260K")
    (ids,) = tokenizer.answers(["One day, Tim"])
    assert ids[-1] == tokenizer.eos
    assert tokenizer.decode(ids) == "One day, Tim"
    whole = tokenizer.prompts(["Once upon a time. One day, Tim"])[0]
    assert whole[-len(ids[:-1]) :] == ids[:-1]  # as it would follow a prompt


def test_folders_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_an_end_is_refused():
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    bare = tokenizers.ByteLevelBPETokenizer()._tokenizer
    with pytest.raises(ValueError, match="names no end-of-sequence token"):
        Tokenizer(PreTrainedTokenizerFast(tokenizer_object=bare))


ids = st.lists(st.integers(1, 999), max_size=8)


@given(st.lists(st.tuples(ids.filter(bool), ids), min_size=1, max_size=4), st.integers(1, 12))
def test_pad_cuts_the_oldest_of_the_prompt_first_and_weighs_exactly_the_answer(rows, length):
    batch = pad([p for p, _ in rows], [a for _, a in rows], length)
    assert batch["tokens"].shape == batch["weights"].shape == (len(rows), length)
    assert batch["tokens"].dtype == np.int32
    for (prompt, answer), tokens, weights in zip(rows, *batch.values(), strict=True):
        first, rest = prompt[:1], prompt[1:]
        while rest and len(first + rest + answer) > length:
            rest = rest[1:]  # one by one, the oldest
        kept = answer[: length - len(first + rest)]
        padding = length - len(first + rest + kept)
        assert tokens.tolist() == first + rest + kept + [0] * padding
        assert weights.tolist() == [0] * len(first + rest) + [1] * len(kept) + [0] * padding


def test_pad_says_the_rule_in_numbers():
    batch = pad([[1, 2, 3, 4], [1, 2], [1, 2, 3]], [[7, 8], [7], [5, 6, 7, 8, 9]], 4)
    assert batch["tokens"].tolist() == [[1, 4, 7, 8], [1, 2, 7, 0], [1, 5, 6, 7]]
    assert batch["weights"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]]


def test_joined_rows_are_documents_one_after_the_other():
    documents = [[1, 2, 3], [4], [5, 6]]
    batch = join(documents, 6, 11, np.random.default_rng(0))
    assert batch["weights"].tolist() == [[1] * 11] * 6
    for row in batch["tokens"].tolist():
        while row:
            (found,) = [d for d in documents if d[: len(row)] == row[: len(d)]]
            row = row[len(found) :]
    again = join(documents, 6, 11, np.random.default_rng(0))
    np.testing.assert_array_equal(batch["tokens"], again["tokens"])
    assert len({tuple(row) for row in batch["tokens"].tolist()}) > 1
