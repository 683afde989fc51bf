"""A server that speaks what gcsfs, google-cloud-storage and tensorstore ask of Google Cloud Storage's JSON API.

Objects live in memory. Generations, preconditions and ranges are as the service documents them
(https://cloud.google.com/storage/docs/json_api/v1/objects, .../request-preconditions): OCDBT's manifest, which Orbax
writes, is updated by compare and swap on them.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Object(NamedTuple):
    content: bytes
    generation: int


class Bucket:
    """The objects of one bucket by name; every change has a new generation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], bytearray]] = {}
        self._lock = threading.Lock()
        self._generations = itertools.count(1)

    def begin(self, name: str, query: dict[str, str]) -> str:
        """Key of a resumable upload, whose content comes in pieces."""
        with self._lock:
            key = str(len(self.uploads))
            self.uploads[key] = (name, query, bytearray())
        return key

    def put(self, name: str, content: bytes, query: dict[str, str]) -> int | Object:
        """The new object, or the status of a precondition that does not hold."""
        with self._lock:
            status = precondition(self.objects.get(name), query)
            if status:
                return status
            self.objects[name] = Object(content, next(self._generations))
            return self.objects[name]

    def delete(self, name: str, query: dict[str, str]) -> int:
        with self._lock:
            if name not in self.objects:
                return 404
            status = precondition(self.objects[name], query)
            if not status:
                del self.objects[name]
            return status or 204

    def describe(self, name: str, found: Object) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "bucket": self.name,
            "name": name,
            "size": str(len(found.content)),
            "generation": str(found.generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(found.content).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def listing(self, query: dict[str, str]) -> dict[str, Any]:
        """Objects and common prefixes, all on one page."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], set()
        for name, found in sorted(self.objects.items()):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.describe(name, found))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


def precondition(found: Object | None, query: dict[str, str]) -> int:
    """0, or the status of a generation precondition that does not hold."""
    generation = found.generation if found else 0
    if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
        return 412
    if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
        return 304
    return 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, status: int, value: object = None) -> None:
        body = {"error": {"code": status, "message": f"status {status}"}} if value is None else value
        self._answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(self) -> tuple[str, str | None, dict[str, str]]:
        """Kind of request (`bucket`, `list`, `object`, `upload`, `batch` or empty), object, query."""
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path.startswith("/batch"):
            return "batch", None, query
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o(?:/(.+))?)?", url.path)
        if not match or match[2] != self.bucket.name:
            return "", None, query
        if match[1] == "/upload":
            return "upload", query.get("name"), query
        if match[4]:
            return "object", unquote(match[4]), query
        return ("list" if match[3] else "bucket"), None, query

    def do_GET(self) -> None:
        kind, name, query = self._route()
        if kind == "bucket":
            self._json(
                200, {"kind": "storage#bucket", "name": self.bucket.name, "location": "US", "metageneration": "1"}
            )
        elif kind == "list":
            self._json(200, self.bucket.listing(query))
        elif name and (found := self.bucket.objects.get(name)):
            if status := precondition(found, query):
                self._answer(status, headers={"x-goog-generation": str(found.generation)})
            elif query.get("alt") == "media" or self.path.startswith("/download"):
                self._download(found)
            else:
                self._json(200, self.bucket.describe(name, found))
        else:
            self._json(404)

    def _download(self, found: Object) -> None:
        headers = {"x-goog-generation": str(found.generation), "Content-Type": "application/octet-stream"}
        size = len(found.content)
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if span is None or not (span[1] or span[2]):
            self._answer(200, found.content, headers)
            return
        first = int(span[1]) if span[1] else max(size - int(span[2]), 0)
        last = min(int(span[2]), size - 1) if span[1] and span[2] else size - 1
        if first >= size:
            self._answer(416, headers={**headers, "Content-Range": f"bytes */{size}"})
        else:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            self._answer(206, found.content[first : last + 1], headers)

    def do_POST(self) -> None:
        kind, name, query = self._route()
        body = self._body()
        if kind == "batch":
            self._batch(body)
        elif kind != "upload":
            self._json(404)
        elif "upload_id" in query:
            self._continue(query["upload_id"], body)
        elif query["uploadType"] == "resumable":
            begun = self.bucket.begin(name or json.loads(body)["name"], query)
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{self.bucket.name}/o?upload_id={begun}"
            self._answer(200, headers={"Location": where})
        elif query["uploadType"] == "media" and name:
            self._store(name, body, query)
        elif query["uploadType"] == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            parts = body.split(b"--" + boundary)[1:3]
            description, content = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts)
            self._store(name or json.loads(description)["name"], re.sub(rb"\r?\n$", b"", content), query)
        else:
            self._json(501)

    def _store(self, name: str, content: bytes, query: dict[str, str]) -> None:
        stored = self.bucket.put(name, content, query)
        if isinstance(stored, int):
            self._json(stored)
        else:
            self._json(200, self.bucket.describe(name, stored))

    do_PUT = do_POST

    def _continue(self, upload: str, body: bytes) -> None:
        """One more piece of a resumable upload; `bytes FIRST-LAST/TOTAL` says when it is the last one."""
        span = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range") or "")
        name, query, content = self.bucket.uploads[upload]
        content += body
        if span is None or span[3] == str(len(content)):
            self._store(name, bytes(content), query)
        else:
            self._answer(308, headers={"Range": f"bytes=0-{len(content) - 1}"} if content else {})

    def do_DELETE(self) -> None:
        _, name, query = self._route()
        status = self.bucket.delete(name, query) if name else 404
        if status == 204:
            self._answer(204)
        else:
            self._json(status)

    def _batch(self, body: bytes) -> None:
        """Several requests in one, of which clients only send deletions."""
        answers = []
        for content_id, path in re.findall(rb"Content-ID: (.*?)\r?\n\r?\nDELETE (\S+)", body, flags=re.DOTALL):
            name = unquote(urlsplit(path.decode()).path.split("/o/", 1)[1])
            status = self.bucket.delete(name, {})
            identity = content_id.decode().strip().strip("<>")
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{identity}>\r\n\r\n"
                f"HTTP/1.1 {status} status\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        self._answer(
            200, ("".join(answers) + "--batch--\r\n").encode(), {"Content-Type": "multipart/mixed; boundary=batch"}
        )


@contextmanager
def serve(name: str) -> Iterator[tuple[str, Bucket]]:
    """Address of a server with one empty bucket, and the bucket."""
    bucket = Bucket(name)
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # Clients that are killed leave broken connections behind.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
