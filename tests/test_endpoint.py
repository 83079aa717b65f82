"""Answers of an endpoint: each paid for once, whatever goes wrong on the way."""

import asyncio
import sys

import chat_server
import pytest
from pydantic import ValidationError

from user_llm.config.base import Config
from user_llm.inference.endpoint import Chat, ChatConfig, Failed, GivenUp, every
from user_llm.inference.replies import mend


class Form(Config):
    """Two texts."""

    mood: str
    plot: str


def talk(server, cache, do, **settings):
    """What `do` gives of a chat, and what was counted."""

    async def run():
        config = ChatConfig(url=server.url, model="tiny", **settings)
        async with Chat(config, cache) as chat:
            return await do(chat), chat.counts

    return asyncio.run(run())


def say(chat):
    return chat.say("the plot is")


def fill(chat):
    return chat.fill("the plot is", Form)


def test_an_answer_is_paid_for_once_wherever_it_is_asked_for(server, chat_model, tmp_path):
    said, counts = talk(server, tmp_path, say)
    assert said and said == talk(server, tmp_path, say)[0]
    assert (counts.calls, counts.cached) == (1, 0)
    assert (counts.prompt_tokens, counts.completion_tokens) == (3, chat_server.WRITTEN)
    assert len(server.bodies) == 1
    with chat_server.serve(chat_model) as other:
        again, counts = talk(other, tmp_path, say)
        assert again == said and not other.bodies
    assert (counts.calls, counts.cached, counts.cached_completion_tokens) == (0, 1, 12)
    for settings in ({"temperature": 0.5}, {"seed": 1}, {"top_p": 0.5}, {"max_tokens": 3}):
        assert talk(server, tmp_path, say, **settings)[1].calls == 1
    assert len(server.bodies) == 5
    (wanted,) = [body for body in server.bodies if body["max_tokens"] == 3]
    assert wanted == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "the plot is"}],
        "temperature": 0.8,
        "top_p": 0.95,
        "max_tokens": 3,
        "seed": 42,
    }


def test_the_same_question_at_the_same_time_is_one_call(server, tmp_path):
    server.delay = 0.1
    both, counts = talk(server, tmp_path, lambda chat: asyncio.gather(say(chat), say(chat)))
    assert both[0] == both[1]
    assert (counts.calls, counts.cached, len(server.bodies)) == (1, 1, 1)


def test_a_file_that_was_cut_off_is_paid_for_again(server, tmp_path):
    said, _ = talk(server, tmp_path, say)
    (path,) = tmp_path.glob("*/*.json")
    assert path.parent.name == path.stem[:2] and len(path.stem) == 64
    path.write_bytes(path.read_bytes()[:40])
    assert talk(server, tmp_path, say)[0] == said
    assert len(server.bodies) == 2


def test_as_many_are_asked_at_a_time_as_told(server, tmp_path):
    server.delay = 0.05
    ask = lambda chat: asyncio.gather(*(chat.say(f"{n} plots") for n in range(12)))
    talk(server, tmp_path, ask, concurrency=3)
    assert (server.most, len(server.bodies)) == (3, 12)


@pytest.mark.parametrize("fault", ["500", "429", "drop"])
def test_failing_requests_are_sent_again(server, tmp_path, fault):
    server.faults = chat_server.first(fault, fault)
    said, counts = talk(server, tmp_path, say)
    assert said and counts.calls == 1 and len(server.bodies) == 3


def test_what_is_not_answered_in_time_is_asked_again_and_then_fails(server, tmp_path):
    server.faults = chat_server.first("slow")
    assert talk(server, tmp_path, say, timeout=2)[0]
    assert len(server.bodies) == 2
    server.faults = lambda nth, body: "slow"
    with pytest.raises(Failed, match="APITimeoutError: Request timed out"):
        talk(server, tmp_path, lambda chat: chat.say("no"), timeout=0.3, retries=1)
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("fault", "requests", "reason"),
    [
        ("500", 2, "InternalServerError: Error code: 500 - .*told to say 500"),
        ("404", 1, "NotFoundError: Error code: 404"),
        ("400", 1, "BadRequestError: Error code: 400"),
        ("drop", 2, "APIConnectionError"),
        ("html", 1, "the reply is no chat completion: Invalid JSON"),
    ],
)
def test_the_last_word_of_an_endpoint_is_told(server, tmp_path, fault, requests, reason):
    server.faults = lambda nth, body: fault
    with pytest.raises(Failed, match=reason) as failed:
        talk(server, tmp_path, say, retries=1)
    assert not isinstance(failed.value, GivenUp)
    assert len(server.bodies) == requests and not list(tmp_path.iterdir())
    server.faults = chat_server.first()
    assert talk(server, tmp_path, say)[0]


def test_a_form_is_filled_in_by_the_model(server, tmp_path):
    form, counts = talk(server, tmp_path, fill)
    assert form.mood and form.plot and form.mood != form.plot
    assert (counts.calls, counts.repaired, counts.retried, counts.given_up) == (1, 0, 0, 0)
    (body,) = server.bodies
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"] == Form.model_json_schema()


def test_malformed_answers_are_mended_corrected_or_given_up(server, tmp_path):
    server.faults = chat_server.first("fenced")
    form, counts = talk(server, tmp_path / "a", fill)
    assert form == talk(server, tmp_path / "plain", fill)[0]
    assert (counts.calls, counts.repaired, counts.retried, counts.given_up) == (1, 1, 0, 0)

    server.bodies.clear()
    server.faults = chat_server.first("broken", "other")
    form, counts = talk(server, tmp_path / "b", fill)
    assert form.mood
    assert (counts.calls, counts.repaired, counts.retried, counts.given_up) == (3, 0, 2, 0)
    told = server.bodies[2]["messages"]
    assert [one["role"] for one in told] == ["user", "assistant", "user", "assistant", "user"]
    assert told[3]["content"] == '{"answer": "yes"}'
    assert "mood: Field required; plot: Field required; answer: Extra" in told[4]["content"]

    server.bodies.clear()
    server.faults = lambda nth, body: "other"
    for paid in (2, 0):  # what was given up is paid for no more
        with pytest.raises(GivenUp, match="no answer of 2 can be used: mood: Field required"):
            talk(server, tmp_path / "c", fill, corrections=1)
        assert len(server.bodies) == 2, paid


@pytest.mark.parametrize("fault", ["empty", "nothing"])
def test_a_text_is_asked_for_until_there_is_one(server, tmp_path, fault):
    server.faults = chat_server.first(fault)
    said, counts = talk(server, tmp_path, say)
    assert said and (counts.calls, counts.retried) == (2, 1)


def test_a_text_stands_behind_its_tag_if_that_is_there(server, tmp_path):
    tagged, _ = talk(server, tmp_path, lambda chat: chat.say("Write [Review]: now", "[Review]:"))
    (path,) = tmp_path.glob("*/*.json")
    assert f'"[Review]: {tagged}"' in path.read_text()
    plain, _ = talk(server, tmp_path, lambda chat: chat.say("Write [Review]: now", "[Other]:"))
    assert plain == f"[Review]: {tagged}"


@pytest.mark.parametrize(
    "answer",
    [
        '{"mood": "a", "plot": "b"}',
        '```json\n{"mood": "a", "plot": "b"}\n```',
        'So: {"mood": "a",\n"plot": "b"} That is all.',
    ],
)
def test_mended_is_what_stands_between_the_outermost_braces(answer):
    assert mend(answer, Form) == Form(mood="a", plot="b")


def test_line_breaks_in_strings_are_forgiven_and_nothing_else():
    assert mend('{"mood": "a\nb", "plot": ""}', Form).mood == "a\nb"
    for answer in ("", "no", "{", "}{", '{"mood": "a"', '{"mood": 3, "plot": ""}', '["a"]'):
        with pytest.raises(ValueError):
            mend(answer, Form)
    with pytest.raises(ValueError):
        mend('{"a":' * 100_000 + "}" * 100_000, Form)


def test_jobs_fail_one_by_one():
    async def job(n):
        await asyncio.sleep(0)
        if n % 2:
            raise Failed(str(n))
        return n

    jobs = [lambda n=n: job(n) for n in range(5)]
    found = asyncio.run(every(jobs, 2, "numbers"))
    assert [str(one) for one in found] == list("01234")
    assert [isinstance(one, Failed) for one in found] == [False, True, False, True, False]


def test_what_cannot_be_asked_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValidationError, match="url"):
        ChatConfig(url="host:8000/v1", model="m")
    with pytest.raises(ValidationError, match="concurrency"):
        ChatConfig(url="http://host/v1", model="m", concurrency=0)
    with pytest.raises(ValueError, match="the endpoint's URL 'http://host:80a/v1' is none"):
        Chat(ChatConfig(url="http://host:80a/v1", model="m"), tmp_path)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match="wants openai; install the extra `dpl`"):
        Chat(ChatConfig(url="http://host/v1", model="m"), tmp_path)
