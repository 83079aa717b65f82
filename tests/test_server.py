"""The server over HTTP: OpenAI's own client and curl, each user with his memory."""

import json
import signal
import subprocess
import time

import jax.numpy as jnp
import numpy as np
import openai
import pytest
import serving_made
from flax import nnx

from user_llm import cli, trained
from user_llm.data import unseen
from user_llm.data.features import KNOWN
from user_llm.inference.catalog import Catalog, beam_search
from user_llm.inference.generate import Generator
from user_llm.inference.recommend import Recommender
from user_llm.models.layers import Memory

pytestmark = pytest.mark.slow
PROMPT = "The next film:"
HOW = {"model": "tiny", "temperature": 0, "max_tokens": 8}
KEY = "a key that is long enough"


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def told(made_export, served):
    """The last events of three users of the run, who are known to the server now."""
    timelines = {f"user-{n}": serving_made.raw_events(made_export[0], n)[-6:] for n in range(3)}
    with served.client() as http:
        for user, events in timelines.items():
            done = http.put(f"/v1/users/{user}/events", json={"events": events})
            assert done.status_code == 200 and done.json()["told"] == len(events)
    return timelines


class Truth:
    """What the run answers, without all that serving adds to it."""

    def __init__(self, run):
        self.run, params = run, trained.system(run)
        make_model = run.make_model(run.systems["user_llm"])
        self.memories = trained.memories(run)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))
        self.generator = Generator(nnx.merge(graphdef, params).decoder)

    def memory(self, events):
        data = unseen.encode(self.run.dataset, [events])
        tokens = jnp.asarray(self.memories.tokens(data, np.array([0])))
        return Memory(tokens, jnp.ones(tokens.shape[:2], bool))

    def answer(self, text, events=None, tokens=8):
        tokenizer = self.run.tokenizer
        found = self.generator.generate(
            tokenizer.prompts([text]),
            max_new_tokens=tokens,
            stop={tokenizer.eos},
            memory=self.memory(events) if events else None,
        )
        return tokenizer.decode(found[0])


@pytest.fixture(scope="module")
def truth(made_export):
    return Truth(made_export[0])


def curl(server, path: str, *flags: str) -> tuple[int, str]:
    """The status and the body of what curl is answered."""
    command = ["curl", "-sS", "-w", "\n%{http_code}", *flags, server.url + path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def posted(body) -> tuple[str, ...]:
    return ("-H", "Content-Type: application/json", "-d", json.dumps(body))


def said(client, user=None, text=PROMPT, **how):
    given = HOW | how | ({"user": user} if user else {})
    found = client.chat.completions.create(messages=[{"role": "user", "content": text}], **given)
    return found.choices[0].message.content


def test_each_user_is_answered_with_his_memory(client, told, truth):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    for user, events in told.items():
        assert said(client, user) == truth.answer(PROMPT, events)
    assert said(client) == truth.answer(PROMPT)


def test_a_conversation_may_be_streamed_and_drawn(client, told, truth):
    messages = [
        {"role": "system", "content": "You know films."},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    how = {"messages": messages, "user": "user-1"}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = [*client.chat.completions.create(**HOW, **how, **options)]
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == truth.answer(f"You know films.\n{PROMPT}", told["user-1"])
    assert parts[-2].choices[0].finish_reason in ("stop", "length")
    assert parts[-1].usage.total_tokens > parts[-1].usage.completion_tokens > 0
    warm = HOW | how | {"temperature": 1, "seed": 5, "n": 3}
    drawn, again = (client.chat.completions.create(**warm) for _ in range(2))
    assert [x.message.content for x in drawn.choices] == [x.message.content for x in again.choices]
    assert len({choice.message.content for choice in drawn.choices}) > 1
    assert drawn.usage.completion_tokens == 3 * 8 or "stop" in {
        choice.finish_reason for choice in drawn.choices
    }


def test_texts_are_gone_on_with_up_to_a_stop(client, told, truth):
    texts = [PROMPT, "The favorite genre:"]
    found = client.completions.create(prompt=texts, user="user-2", **HOW)
    wanted = [truth.answer(text, told["user-2"]) for text in texts]
    assert [choice.text for choice in found.choices] == wanted
    parts = client.completions.create(prompt=PROMPT, user="user-2", stream=True, **HOW)
    assert "".join(part.choices[0].text for part in parts) == wanted[0]
    end = wanted[0][len(wanted[0]) // 2 :]
    found = client.completions.create(prompt=PROMPT, user="user-2", stop=end, **HOW)
    assert found.choices[0].text == wanted[0][: wanted[0].index(end)]
    assert found.choices[0].finish_reason == "stop"


def test_an_answer_may_be_an_item_alone(client, told, made_export):
    titles = made_export[0].dataset.items.titles[KNOWN:]
    for user in (None, *told):
        text = said(client, user, max_tokens=40, extra_body={"items_only": True})
        assert text in titles


def test_recommendations_are_those_of_the_search(served, told, truth, made_export):
    run = made_export[0]
    titles = run.dataset.items.titles[KNOWN:]
    catalog = Catalog(run.tokenizer.answers(titles), truth.generator.config.vocab_size)
    prompts = run.tokenizer.prompts([PROMPT])
    with served.client() as http:
        for user, events in told.items():
            seen = {event["item"] for event in events}
            exclude = np.array([item in seen for item in run.dataset.items.ids[KNOWN:]])
            items, scores = beam_search(
                truth.generator,
                prompts,
                catalog,
                beam=16,
                memory=truth.memory(events),
                exclude=exclude,
            )
            found = http.post("/v1/recommendations", json={"user": user, "k": 5}).json()
            assert [one["title"] for one in found["data"]] == [titles[n] for n in items[0][:5]]
            np.testing.assert_allclose(
                [one["score"] for one in found["data"]], scores[0][:5], atol=1e-4
            )
            assert found["known"]
        new = http.post("/v1/recommendations", json={"user": "stranger", "k": 3}).json()
        assert not new["known"] and len(new["data"]) == 3


def test_vectors_are_those_of_the_encoder(client, told, made_export):
    run = made_export[0]
    encoder = trained.system(run)["streams"]["timeline"]["encoder"]
    recommender = Recommender(run.dataset, run.make_encoder, encoder, mesh=run.mesh)
    found = client.embeddings.create(model="tiny", input=[*told])
    wanted = recommender.embed([*told.values()])
    np.testing.assert_allclose([one.embedding for one in found.data], wanted, atol=1e-5)


def test_an_event_is_known_to_the_next_answer(served, client, truth, made_export):
    run, user = made_export[0], "changing"
    events = serving_made.raw_events(run, 5)[-6:]
    with served.client() as http:
        for count in range(1, 7):
            done = http.post(f"/v1/users/{user}/events", json={"events": events[count - 1 : count]})
            assert done.json() == {"user": user, "version": count, "told": count, "unknown": 0}
            assert said(client, user, max_tokens=4) == truth.answer(PROMPT, events[:count], 4)
        stale = {"events": events[:1], "if_version": 3}
        assert http.post(f"/v1/users/{user}/events", json=stale).status_code == 409
        found = http.get(f"/v1/users/{user}").json()
        assert found["current"] and found["kept"] == 6
        assert [e["item"] for e in found["events"]] == [e["item"] for e in events]
        assert found["events"][0]["title"] in run.dataset.items.titles
        assert user in http.get("/v1/users").json()["users"]
        assert http.delete(f"/v1/users/{user}").status_code == 200
        assert http.get(f"/v1/users/{user}").status_code == 404


def test_curl_reaches_every_endpoint(served, told):
    ask = {**HOW, "user": "user-0"}
    chat = {**ask, "messages": [{"role": "user", "content": PROMPT}]}
    for path, body, kind in (
        ("/v1/chat/completions", chat, "chat.completion"),
        ("/v1/completions", {**ask, "prompt": PROMPT}, "text_completion"),
        ("/v1/embeddings", {"model": "tiny", "input": "user-0"}, "list"),
    ):
        status, text = curl(served, path, *posted(body))
        assert status == 200 and json.loads(text)["object"] == kind
    status, text = curl(served, "/v1/chat/completions", "-N", *posted({**chat, "stream": True}))
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert status == 200 and events[-1] == "[DONE]"
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"
    event = posted({"events": [{"item": "1"}]})
    assert curl(served, "/v1/users/c/events", "-X", "PUT", *event)[0] == 200
    assert json.loads(curl(served, "/v1/users/c/events", *event)[1])["told"] == 2
    assert curl(served, "/v1/recommendations", *posted({"user": "c"}))[0] == 200
    for path in (
        "/v1/models",
        "/v1/models/tiny",
        "/v1/users",
        "/v1/users/c",
        "/v1/items?query=the",
    ):
        status, text = curl(served, path)
        assert status == 200 and json.loads(text)
    assert curl(served, "/v1/users/c", "-X", "DELETE")[0] == 200
    for path in ("/", "/health", "/ready", "/metrics", "/openapi.json"):
        assert curl(served, path)[0] == 200


def test_what_cannot_be_done_is_said_in_openais_form(served, client):
    for wrong, named in (
        ({"max_tokens": 10**6}, "positions"),
        ({"logprobs": True}, "logprobs"),
        ({"user": "no spaces"}, "user"),
        ({"user": ".."}, "user"),
        ({"items_only": True, "max_tokens": 1}, "max_new_tokens"),
    ):
        body = {**HOW, "messages": [{"role": "user", "content": PROMPT}], **wrong}
        status, text = curl(served, "/v1/chat/completions", *posted(body))
        error = json.loads(text)["error"]
        assert status == 400 and named in error["message"]
        assert error["type"] == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        said(client, model="gpt-5")
    with pytest.raises(openai.NotFoundError, match="no user 'stranger'"):
        client.embeddings.create(model="tiny", input="stranger")
    for body in ('{"events": [{"item": "1", "rating": NaN}]}', '{"events": [{"item": "\\ud800"}]}'):
        flags = ("-H", "Content-Type: application/json", "-d", body)
        assert curl(served, "/v1/users/odd/events", *flags)[0] == 400
    assert curl(served, "/v1/users/odd")[0] == 404
    event = posted({"events": [{"item": "1"}]})
    for name, status in (("..", 400), (".", 400), ("...", 200), ("..a", 200)):
        assert curl(served, f"/v1/users/{name}/events", "--path-as-is", *event)[0] == status
    large = posted({"events": [{"item": "x" * 2**21}]})
    path = served.log.with_name("large.json")
    path.write_text(large[-1])
    flags = ("-H", "Content-Type: application/json", "-d", f"@{path}")
    assert curl(served, "/v1/users/odd/events", *flags)[0] == 413
    chunked = ("-H", "Transfer-Encoding: chunked")
    assert curl(served, "/v1/users/odd/events", *flags, *chunked)[0] == 413
    assert curl(served, "/v1/models", "-H", "Host: elsewhere.example")[0] == 400


def test_figures_and_logs_tell_nothing_of_what_was_said(served, client, told):
    secret = "nobody may read this"
    said(client, "user-0", text=secret)
    with served.client() as http:
        figures = http.get("/metrics").text
    asked = 'user_llm_requests_total{method="POST",route="/v1/chat/completions",status="200"}'
    assert asked in figures and "user_llm_first_token_seconds_bucket" in figures
    log = served.log.read_text()
    assert "users.sqlite" in served.logged()[0]["said"]
    assert any(line.get("route") == "/v1/users/{user}/events" for line in served.logged())
    for hidden in (secret, "user-0", PROMPT):
        assert hidden not in log and hidden not in figures


def test_only_who_has_a_key_is_answered(made_export, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"# of the shop\n{KEY}\n")
    flags = ("--host", "0.0.0.0", "--api-keys", str(keys))
    with serving_made.served(made_export[1], tmp_path, *flags) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as one:
            assert said(one)
        for wrong in ("wrong", f"{KEY}x"):
            with (
                openai.OpenAI(base_url=f"{server.url}/v1", api_key=wrong, max_retries=0) as one,
                pytest.raises(openai.AuthenticationError, match="Authorization: Bearer"),
            ):
                said(one)
        assert curl(server, "/v1/users")[0] == curl(server, "/metrics")[0] == 401
        assert curl(server, "/health", "-H", "Host: elsewhere.example")[0] == 200
        assert KEY not in server.log.read_text()


def test_servers_that_others_reach_want_keys(made_export, monkeypatch, capsys):
    monkeypatch.delenv("USER_LLM_API_KEYS", raising=False)
    assert cli.main(["serve", str(made_export[1]), "--host", "0.0.0.0"]) == 2
    assert "--unlocked" in capsys.readouterr().err


def test_too_few_events_to_read_a_user_anew_are_not_served(made_export, capsys):
    assert cli.main(["serve", str(made_export[1]), "--kept", "8"]) == 2
    assert "keep at least 9" in capsys.readouterr().err


@pytest.fixture(scope="module")
def narrow(made_export, tmp_path_factory):
    """A server that answers one request at a time, and lets one wait."""
    folder, flags = tmp_path_factory.mktemp("narrow"), ("--rows", "1", "--waiting", "1")
    with serving_made.served(made_export[1], folder, *flags) as server:
        yield server


@pytest.fixture
def patient(narrow):
    with openai.OpenAI(base_url=f"{narrow.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_too_many_are_told_so_and_who_leaves_makes_room(patient):
    long = HOW | {"max_tokens": 60, "stream": True, "extra_body": {"repetition_penalty": 2.0}}
    for _ in range(3):
        streams = []
        with pytest.raises(openai.RateLimitError, match="wait already"):
            for _ in range(50):
                ask = [{"role": "user", "content": PROMPT}]
                streams.append(patient.chat.completions.create(messages=ask, **long))
        for stream in streams:
            stream.close()
        assert eventually(lambda: said(patient))


def eventually(ask):
    """What is answered once there is room."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            return ask()
        except openai.RateLimitError:
            time.sleep(0.05)
    raise AssertionError("those who left are still answered")


def test_what_is_under_way_is_ended_before_the_server_stops(narrow, patient):
    wanted, found = said(patient, max_tokens=60), []
    stream = patient.chat.completions.create(
        messages=[{"role": "user", "content": PROMPT}], **HOW | {"max_tokens": 60, "stream": True}
    )
    for part in stream:
        if not found:
            narrow.process.send_signal(signal.SIGTERM)
        found.append(part.choices[0].delta.content or "")
    assert "".join(found) == wanted
    assert narrow.process.wait(30) == 0
    with pytest.raises(openai.APIConnectionError):
        said(patient)
