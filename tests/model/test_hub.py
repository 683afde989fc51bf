"""Models by name, `hf:owner/name`, fetched from a local stand-in for a hub."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from pit.model.errors import ModelFileError
from pit.model.pretrained import Pretrained

GOLDEN = Path(__file__).parent / "golden"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The model `owner/name` in one revision: its facts, its tree, its files."""

    folder: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append(path)
        files = {f"/owner/name/resolve/{COMMIT}/{file.name}": file for file in self.folder.iterdir()}
        if path in files:
            self.send(200, files[path].read_bytes(), body)
        elif path.startswith(("/api/models/owner/name/revision/main", f"/api/models/owner/name/revision/{COMMIT}")):
            self.send(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode(), body)
        elif path == f"/api/models/owner/name/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": digest(file.read_bytes())}
                for file in files.values()
            ]
            self.send(200, json.dumps(entries).encode(), body)
        else:
            self.send(404, b"{}", body)

    def send(self, status: int, content: bytes, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{digest(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    folder = Path(shutil.copytree(GOLDEN / "llama_untied", tmp_path / "served"))
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    handler = type("Handler", (Hub,), {"folder": folder, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_fetched_by_name_and_once(hub: type[Hub]) -> None:
    fetched, local = Pretrained.open("hf:owner/name"), Pretrained.open(GOLDEN / "llama_untied")
    assert fetched.config == local.config
    assert fetched.digest == local.digest
    assert not any("pytorch_model.bin" in path for path in hub.requests)
    hub.requests.clear()
    assert Pretrained.open("hf:owner/name@main").path == fetched.path
    assert not any("/resolve/" in path for path in hub.requests), "the files are in the cache"


def test_what_cannot_be_fetched_is_named(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelFileError, match=r"hf:owner/other: cannot be fetched .*; check the name and the network"):
        Pretrained.open("hf:owner/other")
    with pytest.raises(ModelFileError, match=r"hf:owner/name/q4.gguf: has no q4.gguf; name a file that the model has"):
        Pretrained.open("hf:owner/name/q4.gguf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelFileError, match="hf:owner/absent: cannot be fetched"):
        Pretrained.open("hf:owner/absent")


def test_names_of_another_form_are_refused() -> None:
    for name in ("hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a/b/c.bin"):
        with pytest.raises(ModelFileError, match=f"model = '{name}': must have the form hf:owner/name"):
            Pretrained.open(name)
