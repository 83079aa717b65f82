"""An OpenAI-compatible endpoint over HTTP, in which a real, small model answers and may misbehave.

Where an answer must fit a JSON schema, the model writes what stands in its fields, and nothing else
is possible: the simplest kind of guided decoding.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import transformers
from their_decoders import write_theirs
from tokenizers import Tokenizer, models, pre_tokenizers

TEXT = """
a about after again all along although and any as at back bad because been before best better
big but by calm cast charm clear cold come dark deep did do dull easy end even ever far fast few
film find fine first for from fun get give go good had hard has have he her here his how i if in
into is it just keep kind last less like long look lot made make many me mood more most much my
near never new nice no not now of off old on one or other our out over part plain plot quiet
read real rich sad scene see set she slow so soft some song still such than that the then there
they those
"""
WORDS = TEXT.split()  # of the random model
READ, WRITTEN = 200, 12  # tokens of a prompt, its last ones, and of a text
FAILURES = {"400": 400, "404": 404, "429": 429, "500": 500}
Faults = Callable[[int, dict[str, Any]], str]  # by the number of a request and what it says


def write_model(folder: Path) -> Path:
    """A folder with a random Llama and its tokenizer."""
    write_theirs(folder)
    vocabulary = {word: i for i, word in enumerate(["<s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>"
    ).save_pretrained(folder)
    return folder


class Model:
    """What answers: a model's own words, always the same ones to the same request."""

    def __init__(self, folder: Path, written: int = WRITTEN):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.written, self._lock = written, threading.Lock()

    def answer(self, body: dict[str, Any]) -> tuple[str, int, int]:
        """The text, the tokens read and the tokens written."""
        prompt = "\n".join(message["content"] for message in body["messages"])
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
        with self._lock:
            torch.manual_seed(int.from_bytes(key[:7]) + body["seed"])
            if "response_format" not in body:
                text, read, written = self._write(prompt, body)
                tag = next((t for t in ("[Summary]:", "[Review]:") if t in prompt), "")
                return f"{tag} {text}", read, written
            fields, totals = {}, (0, 0)
            schema = body["response_format"]["json_schema"]["schema"]
            for name, field in schema["properties"].items():
                text, read, written = self._write(f"{prompt}\n{name}:", body)
                fields[name] = len(text) % 11 if field["type"] == "integer" else text
                totals = totals[0] + read, totals[1] + written
            return json.dumps(fields), *totals

    def _write(self, prompt: str, body: dict[str, Any]) -> tuple[str, int, int]:
        ids = self.tokenizer(prompt)["input_ids"][-READ:]
        hot = {"temperature": body["temperature"], "top_p": body["top_p"]}
        count = min(self.written, body["max_tokens"])
        with torch.inference_mode():
            tokens = self.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=body["temperature"] > 0,
                pad_token_id=0,
                **(hot if body["temperature"] > 0 else {}),
            )
        text = self.tokenizer.decode(tokens[0, len(ids) :], skip_special_tokens=True).strip()
        return text or "fine", len(ids), count


class Server(ThreadingHTTPServer):
    """The endpoint, and what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, model: Model):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.bodies = model, []
        self.faults: Faults = lambda nth, body: ""
        self.delay = 0.0  # seconds for every answer
        self.most = self.now = 0  # requests at a time
        self.lock, self.stopped = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def distinct(self) -> set[str]:
        """All that was asked, each once."""
        return {json.dumps(body, sort_keys=True) for body in self.bodies}

    def handle_error(self, request, client_address):
        """Clients may hang up, and tests look at nothing else that is told here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            nth = len(server.bodies)
            server.bodies.append(body)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            self._reply(server.faults(nth, body), body)
        finally:
            with server.lock:
                server.now -= 1

    def _reply(self, fault: str, body: dict[str, Any]):
        if self.path != "/v1/chat/completions":
            return self._send(404, {"error": {"message": f"no {self.path}"}})
        if fault in FAILURES:
            return self._send(FAILURES[fault], {"error": {"message": f"told to say {fault}"}})
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            return None
        if fault == "html":
            return self._send(200, "<html>A proxy says hello.</html>", "text/html")
        self.server.stopped.wait(30 if fault == "slow" else self.server.delay)
        text, read, written = self.server.model.answer(body)
        text = MALFORMED.get(fault, lambda text: text)(text)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }
        return self._send(
            200,
            {
                "id": "chat",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body["model"],
                "choices": [{**choice, "finish_reason": "stop"}],
                "usage": usage,
            },
        )

    def _send(self, status: int, content: Any, kind: str = "application/json"):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "20")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


MALFORMED: dict[str, Callable[[str], str | None]] = {
    "fenced": lambda text: f"Sure, here it is:\n```json\n{text}\n```\nAnything else?",
    "broken": lambda text: text[: len(text) // 2],
    "other": lambda text: '{"answer": "yes"}',
    "empty": lambda text: " ",
    "nothing": lambda text: None,
}


@contextmanager
def serve(model: Model) -> Iterator[Server]:
    """An endpoint for as long as it is needed."""
    with Server(model) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


def first(*faults: str) -> Faults:
    """These faults at the first requests."""
    return lambda nth, body: faults[nth] if nth < len(faults) else ""


def asked(body: dict[str, Any]) -> str:
    """The question that a request begins with."""
    return body["messages"][0]["content"]


def main() -> None:
    """Serves the model in a folder until it is interrupted, and tells where."""
    import sys

    with serve(Model(Path(sys.argv[1]), written=60)) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
