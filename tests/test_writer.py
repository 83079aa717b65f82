"""Text as it is written: the same in parts as whole, and no further than its stop strings."""

import pytest

from user_llm.data.text import Tokenizer
from user_llm.huggingface import import_decoder
from user_llm.inference.generate import Generator
from user_llm.inference.sampling import Sampling
from user_llm.inference.writer import Writer, _sure

PROMPTS = ["Once upon a time", "Lily and Tom went to the park. They"]


@pytest.fixture(scope="module")
def writer(data_folder):
    folder = data_folder / "models" / "stories260K"
    return Writer(Generator(import_decoder(folder)), Tokenizer.load(folder))


@pytest.fixture(scope="module")
def answers(writer):
    return writer.write(PROMPTS, max_new_tokens=40)


def test_answers_are_those_of_the_tokens(writer, answers):
    tokens = writer.generator.generate(
        writer.tokenizer.prompts(PROMPTS), max_new_tokens=40, stop={writer.tokenizer.eos}
    )
    assert answers == [writer.tokenizer.decode(ids) for ids in tokens]
    assert all(len(answer) > 50 for answer in answers)


def test_parts_come_one_after_the_other(writer, answers):
    parts = list(writer.stream(PROMPTS, max_new_tokens=40))
    assert len([x for x in parts if x]) > 20
    assert ["".join(x.get(row, "") for x in parts) for row in range(2)] == answers


def test_answer_ends_before_its_stop_string(writer, answers):
    stop = answers[0][20:23]
    assert stop.strip()
    cut = [text.split(stop)[0] for text in answers]
    assert writer.write(PROMPTS, max_new_tokens=40, stop=[stop, "never in it"]) == cut
    parts = list(writer.stream(PROMPTS[:1], max_new_tokens=40, stop=[stop]))
    told = ""
    for part in parts:
        told += part.get(0, "")
        assert cut[0].startswith(told)  # nothing is taken back
    assert told == cut[0]


def test_each_prompt_has_its_own_sampling(writer, answers):
    how = [Sampling(), Sampling(1.0, top_k=40, seed=1)]
    mixed = writer.write(PROMPTS, max_new_tokens=40, sampling=how)
    assert mixed[0] == answers[0]
    assert mixed[1] != answers[1]


def test_letter_of_several_bytes_is_told_whole(writer):
    # One letter byte by byte, and one that is never finished.
    ids = writer.tokenizer._tokenizer.convert_tokens_to_ids(["a", "<0xC3>", "<0xA9>", "<0xE4>"])

    class Spelling(Generator):
        def __init__(self):
            self.config = writer.generator.config

        def stream(self, prompts, **_):
            yield from ({0: token} for token in ids)

    spelling = Writer(Spelling(), writer.tokenizer)
    parts = [x[0] for x in spelling.stream([""], max_new_tokens=4) if x]
    assert "".join(parts) == writer.tokenizer.decode(ids)
    assert parts[0] == "a"


@pytest.mark.parametrize(
    ("text", "stop", "sure"),
    [
        ("a story", [], 7),
        ("a story\nU", ["\nUser:"], 7),
        ("a story\nUs", ["\nUser:", "so"], 7),
        ("half a letter \N{REPLACEMENT CHARACTER}", [], 14),
        ("END", ["END OF IT"], 0),
    ],
)
def test_what_may_yet_change_is_held_back(text, stop, sure):
    assert _sure(text, stop) == sure


def test_bad_requests_are_named(writer):
    with pytest.raises(ValueError, match="an empty stop string"):
        writer.write(PROMPTS, max_new_tokens=4, stop=[""])
    small = writer.generator.config.model_copy(update={"vocab_size": 100})
    generator = Generator.__new__(Generator)
    generator.config = small
    with pytest.raises(ValueError, match="the tokenizer has 512 tokens, the decoder 100"):
        Writer(generator, writer.tokenizer)
