"""Google's storage as far as gcsfs and tensorstore speak to it: its JSON API, over memory."""

import base64
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.parser import BytesParser
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Bucket:
    """What is stored in a bucket, by name: content, generation, and when it was written."""

    def __init__(self, name: str):
        self.name, self.lock, self.generation = name, threading.Lock(), 0
        self.objects: dict[str, tuple[bytes, int, str]] = {}
        self.closed = False  # to whoever would write

    def told(self, name: str) -> dict[str, Any]:
        content, generation, updated = self.objects[name]
        return {
            "kind": "storage#object",
            "id": f"{self.name}/{name}/{generation}",
            "name": name,
            "bucket": self.name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(md5(content).digest()).decode(),
            "timeCreated": updated,
            "updated": updated,
            "contentType": "application/octet-stream",
        }

    def put(self, name: str, content: bytes) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.generation += 1
        self.objects[name] = (content, self.generation, now)
        return self.told(name)

    def listed(self, prefix: str, delimiter: str, first: str, last: str) -> dict[str, Any]:
        items, prefixes = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix) or name < first or (last and name >= last):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + 1])
            else:
                items.append(self.told(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket
    uploads: dict[str, tuple[str, bytearray]]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Type" not in headers:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self) -> None:
        self.answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()}

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def refused(self, name: str, query: dict[str, str]) -> bool:
        """Whether a condition is not met; answered then."""
        stored = self.bucket.objects.get(name)
        generation = str(stored[1]) if stored else "0"
        if query.get("ifGenerationMatch", generation) != generation:
            self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            return True
        if query.get("ifGenerationNotMatch") == generation:
            self.answer(304)
            return True
        return False

    def do_GET(self) -> None:
        path, query = self.asked()
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path)
        if not found or found[1] != self.bucket.name:
            return self.missing()
        with self.bucket.lock:
            if not re.search(r"/b/[^/]+/o", path):
                return self.answer(200, {"kind": "storage#bucket", "name": self.bucket.name})
            if found[2] is None:
                asked = (query.get(x, "") for x in ("prefix", "delimiter"))
                bounds = (query.get(x, "") for x in ("startOffset", "endOffset"))
                return self.answer(200, self.bucket.listed(*asked, *bounds))
            name = unquote(found[2])
            if name not in self.bucket.objects:
                return self.missing()
            if self.refused(name, query):
                return None
            if query.get("alt") != "media":
                return self.answer(200, self.bucket.told(name))
            content, generation, _ = self.bucket.objects[name]
        known = {
            "Content_Type": "application/octet-stream",
            "x_goog_generation": str(generation),
            "x_goog_stored_content_length": str(len(content)),
        }
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            if first >= len(content):
                return self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
            known["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], **known)
        return self.answer(200, content, **known)

    def do_POST(self) -> None:
        path, query = self.asked()
        content = self.body()
        if not re.fullmatch(rf"/upload/storage/v1/b/{re.escape(self.bucket.name)}/o", path):
            return self.missing()
        if self.bucket.closed:
            return self.answer(403, {"error": {"code": 403, "message": "Forbidden"}})
        if "upload_id" in query:
            return self.resume(query["upload_id"], content)
        kind = query.get("uploadType")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            told, _ = BytesParser().parsebytes(head + content).get_payload()
            name = json.loads(told.get_payload(decode=True))["name"]
            # The parser takes ends of lines for its own: the bytes are cut out by hand.
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            part = content.split(b"--" + boundary)[2]
            content = part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1]
            content = content.removesuffix(b"\n").removesuffix(b"\r")
        elif kind == "resumable":
            name = query.get("name") or json.loads(content)["name"]
            key = str(len(self.uploads))
            self.uploads[key] = (name, bytearray())
            where = f"http://{self.headers['Host']}{path}?uploadType=resumable&upload_id={key}"
            return self.answer(200, {}, Location=where)
        else:
            name = query["name"]
        with self.bucket.lock:
            if not self.refused(name, query):
                self.answer(200, self.bucket.put(name, content))
        return None

    def resume(self, key: str, content: bytes) -> None:
        """Takes the next piece of an upload in several."""
        name, data = self.uploads[key]
        data += content
        span = re.fullmatch(r"bytes .*/(\d+|\*)", self.headers.get("Content-Range", "bytes /0"))
        if span and span[1] == "*":
            return self.answer(308, b"", Range=f"bytes=0-{len(data) - 1}")
        with self.bucket.lock:
            return self.answer(200, self.bucket.put(name, bytes(data)))

    def delete(self, path: str) -> int:
        found = re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", path)
        gone = found and self.bucket.objects.pop(unquote(found[2]), None)
        return 204 if gone else 404

    def do_DELETE(self) -> None:
        path, query = self.asked()
        with self.bucket.lock:
            if not self.refused(unquote(path.rpartition("/o/")[2]), query):
                code = self.delete(path)
                self.answer(code) if code == 204 else self.missing()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that was killed
            super().handle_error(*_)


@contextmanager
def serve(name: str = "bucket") -> Iterator[tuple[Bucket, dict[str, str]]]:
    """A bucket, and the environment in which it is Google's."""
    bucket = Bucket(name)
    handler = type("Own", (Handler,), {"bucket": bucket, "uploads": {}})
    server = Server(("localhost", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://localhost:{server.server_port}"
    try:
        yield (
            bucket,
            {
                "STORAGE_EMULATOR_HOST": address,
                "FSSPEC_GS_TOKEN": "anon",
                "TENSORSTORE_GCS_HTTP_URL": address,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anybody",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
