"""What the server's description says of it, held against what it does by schemathesis."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import serving_made

pytestmark = pytest.mark.slow
KEY = "a key that is long enough"
USERS = ("ann", "bob")
LED = {"model", "user", "input"}
ASKED = ("ChatRequest", "CompletionRequest", "EmbeddingRequest", "RecommendationRequest")


def narrowed(schema: dict) -> dict:
    """A description that leads to what is there: the model, and users who are known."""

    def known(name: str, own: dict) -> dict:
        return {"const": "tiny"} if name == "model" else {"anyOf": [{"enum": [*USERS]}, own]}

    for form in ASKED:
        fields = schema["components"]["schemas"][form]["properties"]
        fields |= {name: known(name, fields[name]) for name in LED & fields.keys()}
    for path in schema["paths"].values():
        for operation in path.values():
            for one in operation.get("parameters", ()):
                if one["name"] in LED:
                    one["schema"] = known(one["name"], one["schema"])
    return schema


def ask_all(server: serving_made.Server, folder: Path, *flags: str, key: str = "") -> str:
    """What schemathesis says, which finds nothing."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for user in USERS:
        body = {"events": [{"item": "i0001"}]}
        told = httpx.put(f"{server.url}/v1/users/{user}/events", json=body, headers=headers)
        assert told.status_code == 200
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(narrowed(httpx.get(f"{server.url}/openapi.json").json())))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(schema), "--url", server.url]
    own = ["--seed=7", "--generation-database=none", "--no-color", "--request-timeout=60"]
    own += [f"--header={name}: {value}" for name, value in headers.items()]
    # What is in form may still be too long, or of another data set.
    own += ["--exclude-checks=positive_data_acceptance"]
    done = subprocess.run([*command, *own, *flags], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def check_promises(schema: dict) -> None:
    """Looks for what schemathesis does not miss."""
    for path in schema["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"] and "400" in operation["responses"]
    chat = schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert chat["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert {"408", "413", "429", "503", "504"} <= chat.keys()
    own = schema["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {kind["type"] for kind in own["prompt"]["anyOf"]} == {"string", "array"}


def test_all_that_is_said_of_the_server_is_so(exported, tmp_path):
    with serving_made.served(exported, tmp_path) as server:
        check_promises(httpx.get(f"{server.url}/openapi.json").json())
        ask_all(server, tmp_path, "--max-examples=10")
        statuses = {line["status"] for line in server.logged() if "status" in line}
        assert {200, 400, 404, 405} <= statuses and max(statuses) < 500
        text = server.log.read_text()
        assert "Traceback" not in text and "ann" not in {*text.split('"')}


def test_nothing_is_answered_without_a_key(exported, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    with serving_made.served(exported, tmp_path, "--api-keys", str(keys)) as server:
        schema = httpx.get(f"{server.url}/openapi.json").json()
        open_ones = {"/health", "/ready"}
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                assert ("security" in operation) == (path not in open_ones)
                if path not in open_ones:
                    assert httpx.request(method, server.url + path).status_code == 401
        flags = ("--phases=coverage", "--checks=ignored_auth,not_a_server_error")
        ask_all(server, tmp_path, *flags, key=KEY)
