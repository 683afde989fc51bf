"""`pit serve` as a process: OpenAI's own client, 64 requests at once, clients that leave, and signals."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_run import environment, pit

pytestmark = pytest.mark.slow
PROMPT = "Describe this red small cheap lamp: price and size. End fondly."


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the smallest run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    pit("run", "tiny", "--out", folder, timeout_s=2000)
    return folder


class Server:
    """A server that was started, with its address and process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stdout is not None
        self.lines = [process.stdout.readline()]
        if self.lines[0].startswith("compiled"):
            self.lines.append(process.stdout.readline())
        self.line = self.lines[-1]
        found = re.search(r"at (http://127\.0\.0\.1:\d+/v1), models policy, improved$", self.line)
        assert found, self.line
        self.url = found[1]

    def post(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Return status and body of the answer to a chat request."""
        body = {"model": "policy", "messages": [{"role": "user", "content": PROMPT}], **fields}
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, and return the exit status and what was said on stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=700)
        return self.process.returncode, errors


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """Start a server on a free port, and kill it at the end if it still runs."""
    words = [sys.executable, "-m", "pit", "serve", "--run", str(folder), "--port", "0", *options]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def test_openais_own_client_asks_streams_and_sees_errors(finished: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")
    user: Any = {"role": "user", "content": PROMPT}
    with serving(finished, "--iterations", "2") as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=300)
        assert [model.id for model in client.models.list()] == ["policy", "improved"]
        answer = client.chat.completions.create(model="policy", messages=[user], seed=1)
        text = answer.choices[0].message.content
        assert text
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        pieces = list(
            client.chat.completions.create(
                model="policy", messages=[user], seed=1, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == text
        assert len(pieces) > 5
        assert pieces[-1].usage == answer.usage
        better = client.chat.completions.create(
            model="improved", messages=[user, {"role": "assistant", "content": "price cheap"}], seed=1
        )
        record = better.choices[0].pit
        assert record["answers"][0] == "price cheap"
        assert len(record["steps"]) == 2
        with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' does not exist"):
            client.chat.completions.create(model="gpt-9", messages=[user])
        with pytest.raises(openai.BadRequestError, match=r"has \d+ tokens, but this model's window holds"):
            client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "word " * 500}])
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
        with pytest.raises(openai.BadRequestError, match="'tools' is not supported"):
            client.chat.completions.create(model="policy", messages=[user], tools=[tool])
        # A client that stops reading leaves the server free.
        with client.chat.completions.create(model="policy", messages=[user], stream=True) as stream:
            next(iter(stream))
        assert (
            client.chat.completions.create(model="policy", messages=[user], seed=1).choices[0].message.content == text
        )
        assert server.end() == (0, "")


def test_64_requests_at_once_get_the_answers_that_each_gets_alone_and_a_signal_answers_what_waits(
    finished: Path,
) -> None:
    with serving(finished, "--batch", "64", "--iterations", "1", "--drain", "600") as server:
        plans = [{"seed": number, "model": ("policy", "improved")[number % 2]} for number in range(64)]
        alone = [server.post(**plan) for plan in plans[:4]]
        with ThreadPoolExecutor(64) as pool:
            together = list(pool.map(lambda plan: server.post(**plan), plans))
        assert [status for status, _ in together] == [200] * 64
        for (_, one), (_, other) in zip(alone, together, strict=False):
            assert one["choices"] == other["choices"]
        begun = threading.Event()

        def late(plan: dict[str, Any]) -> int:
            begun.set()
            return server.post(**plan)[0]

        with ThreadPoolExecutor(16) as pool:
            waiting = [pool.submit(late, plan) for plan in plans[:16]]
            assert begun.wait(10)
            # All of them are in the queue, or in the batch that is drawn.
            threading.Event().wait(0.5)
            assert server.end() == (0, "")
            statuses = [each.result() for each in waiting]
    assert statuses == [200] * 16


def test_a_signal_ends_what_does_not_end_in_time(finished: Path) -> None:
    with serving(finished, "--drain", "0") as server, ThreadPoolExecutor(4) as pool:
        # Programs of a size that nothing asked for before take a while to compile.
        waiting = [pool.submit(server.post, seed=seed, n=5) for seed in range(4)]
        threading.Event().wait(0.5)
        assert server.end(signal.SIGINT) == (0, "")
        for each in waiting:
            status, body = each.result()
            assert status == 200 or (status, body["error"]["code"]) == (503, "shutdown")


def test_a_warm_server_says_what_it_compiled_and_answers_at_once(finished: Path) -> None:
    with serving(finished, "--warmup", "--batch", "4", "--iterations", "1") as server:
        said = r"compiled in \d+ s for prompts as in the run's data, in batches of 1, 2, 3, 4 answers$"
        assert re.match(said, server.lines[0])
        with ThreadPoolExecutor(4) as pool:
            assert [status for status, _ in pool.map(lambda seed: server.post(seed=seed), range(4))] == [200] * 4
        assert server.end() == (0, "")


def test_addresses_and_keys_are_checked_before_anything_is_loaded(finished: Path) -> None:
    with serving(finished) as server:
        port = re.findall(r"\d+", server.url)[-2]
        taken = pit("serve", "--run", finished, "--port", port, check=False)
        assert taken.returncode == 1
        assert f"--host = 127.0.0.1, --port = {port}: cannot be listened on (Address already in use); give" in " ".join(
            taken.stderr.split()
        )
    nowhere = pit("serve", "--run", finished, "--host", "no.such.host.invalid", check=False)
    assert "--host = no.such.host.invalid: is no address of this machine" in " ".join(nowhere.stderr.split())
    lacking = pit("serve", "--run", finished, "--api-key-env", "PIT_NO_SUCH_KEY", check=False)
    assert "--api-key-env = PIT_NO_SUCH_KEY: is not set or empty" in " ".join(lacking.stderr.split())


def test_a_server_that_others_can_reach_says_so_and_asks_for_its_key(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIT_TEST_KEY", "secret")
    words = ["serve", "--run", str(finished), "--host", "0.0.0.0", "--port", "0"]
    words += ["--api-key-env", "PIT_TEST_KEY"]
    with subprocess.Popen(
        [sys.executable, "-m", "pit", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment() | {"PIT_TEST_KEY": "secret"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            port = re.findall(r":(\d+)/v1", process.stdout.readline())[0]
            url = f"http://127.0.0.1:{port}/v1/models"
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url, timeout=60)
            request = urllib.request.Request(url, headers={"Authorization": "Bearer secret"})
            with urllib.request.urlopen(request, timeout=60) as response:
                assert response.status == 200
            os.kill(process.pid, signal.SIGTERM)
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 0
    assert errors == "pit: listens on 0.0.0.0, which other machines can reach, over HTTP that is not encrypted\n"
