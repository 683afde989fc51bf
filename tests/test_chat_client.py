"""The client of chat servers: what it sends, which failures it tries again, and that each ends in one clear line."""

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pit.chat_client import LONGEST_WAIT_S, ChatClient, ChatError, Completion
from pit.types import Message

HELLO = (Message("system", "Be brief."), Message("user", "Hello?"))
Reply = tuple[int, dict[str, str], bytes]


def answer(text: Any, usage: Any = None) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()


GOOD = answer("Hi.", {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9})


class Server:
    """A server that gives replies in turn; the last one again and again.

    requests: path, headers and JSON body of each request.
    waits: seconds that the client waited between its attempts.
    """

    def __init__(self, *replies: Reply | Callable[[Any], None]) -> None:
        self.replies, self.requests, self.waits = list(replies), [], []

    @contextlib.contextmanager
    def started(self) -> Iterator[str]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append((self.path, dict(self.headers), json.loads(body or b"null")))
                reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
                if callable(reply):
                    reply(self)
                    return
                status, headers, content = reply
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
            thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{listening.server_port}/v1"
            finally:
                listening.shutdown()
                thread.join()

    def ask(self, **options: Any) -> Completion:
        """Return the server's answer to `HELLO`."""
        with self.started() as url:
            client = ChatClient(url, "other", sleep=self.waits.append, **options)
            return client.complete(HELLO, temperature=0, max_tokens=5)

    def refusal(self, **options: Any) -> str:
        """Return the error about it, without the URL in front."""
        with pytest.raises(ChatError) as refused:
            self.ask(**options)
        text = str(refused.value)
        assert "\n" not in text
        return text.partition("/v1: ")[2]


def test_a_request_is_that_of_openai_and_the_answer_comes_with_its_tokens() -> None:
    server = Server(GOOD)
    assert server.ask(key="secret") == Completion("Hi.", 7, 2)
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "model": "other",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "temperature": 0,
        "max_tokens": 5,
    }


def test_without_a_key_none_is_sent_and_without_usage_tokens_are_zero() -> None:
    server = Server(answer("Hi."))
    assert server.ask() == Completion("Hi.", 0, 0)
    assert "Authorization" not in server.requests[0][1]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_busy_or_broken_server_is_asked_again(status: int) -> None:
    server = Server((status, {}, b"busy"), GOOD)
    assert server.ask().text == "Hi."
    assert len(server.requests) == 2


def test_waits_double_and_follow_the_server_up_to_a_limit() -> None:
    server = Server((503, {}, b""), (503, {}, b""), (429, {"Retry-After": "7"}, b""), GOOD)
    assert server.ask().text == "Hi."
    assert [0.5 <= server.waits[0] <= 0.625, 1 <= server.waits[1] <= 1.25, server.waits[2] == 7] == [True] * 3
    patient = Server(
        (429, {"Retry-After": "86400"}, b""), (503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, b""), GOOD
    )
    patient.ask()
    assert patient.waits[0] == LONGEST_WAIT_S
    assert patient.waits[1] <= 1.25


def test_the_last_attempt_ends_in_the_reason_and_its_remedy() -> None:
    body = json.dumps({"error": {"message": "no\n room", "type": "x"}}).encode()
    server = Server((503, {}, body))
    assert server.refusal(attempts=3) == (
        "status 503, 'no room' (3 attempts); try again later, or look into the server's log"
    )
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (
            400,
            b'{"error": {"message": "bad model"}}',
            "status 400, 'bad model'; correct the request, as the server says",
        ),
        (401, b"", "status 401; the server wants another key: set the environment variable of the key"),
        (403, b"no", "status 403, 'no'; the server forbids it to this key: use another key or model"),
        (404, b'{"error": "gone"}', "status 404, 'gone'; check the URL, which usually ends in /v1, and the name of"),
        (422, b"[" * 10_000, "status 422, '[[["),
    ],
)
def test_what_another_attempt_cannot_mend_ends_at_once(status: int, body: bytes, text: str) -> None:
    server = Server((status, {}, body))
    assert server.refusal().startswith(text)
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed_because_the_key_is_for_this_server() -> None:
    server = Server((307, {"Location": "http://127.0.0.1:9/v1"}, b""))
    assert server.refusal(key="secret") == (
        "status 307: redirects to http://127.0.0.1:9/v1; give the URL that it names, if you trust it"
    )
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>", "the response holds no chat completion: '<html>'; check that the URL is that of a chat API"),
        (b'{"choices": []}', "the response holds no chat completion"),
        (b"[1]", "the response holds no chat completion"),
        (b'{"choices": [{"message": "x"}]}', "the response holds no chat completion"),
        (b"\xff" * 10, "the response holds no chat completion"),
        (answer(None)[2], "the answer has no text (finish_reason 'stop'); allow it more tokens"),
        (answer(" \n")[2], "the answer has no text"),
    ],
)
def test_a_response_without_an_answer_is_named(body: bytes, text: str) -> None:
    assert Server((200, {}, body)).refusal().startswith(text)


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (0, 0)),
        ({}, (0, 0)),
        ("none", (0, 0)),
        ([7, 2], (0, 0)),
        ({"prompt_tokens": "7", "completion_tokens": 2}, (0, 2)),
        ({"prompt_tokens": None, "completion_tokens": -1}, (0, 0)),
        ({"prompt_tokens": 7.5, "completion_tokens": True}, (0, 0)),
    ],
)
def test_an_answer_counts_without_the_numbers_of_its_tokens(usage: Any, counts: tuple[int, int]) -> None:
    _, _, body = answer("Yes.", {})
    with Server((200, {}, json.dumps({**json.loads(body), "usage": usage}).encode())).started() as url:
        completion = ChatClient(url, "m").complete([Message("user", "Well?")])
    assert completion == Completion("Yes.", *counts)


def test_the_models_of_a_server_are_listed() -> None:
    listed = json.dumps({"object": "list", "data": [{"id": "a"}, {"id": "b"}]}).encode()
    server = Server((503, {}, b""), (200, {}, listed), (200, {}, b'{"data": 3}'))
    with server.started() as url:
        client = ChatClient(url, "", sleep=server.waits.append)
        assert client.models() == ["a", "b"]
        with pytest.raises(ChatError, match=r"the response holds no list of models: .*; check that the URL"):
            client.models()
    assert [path for path, *_ in server.requests] == ["/v1/models"] * 3


def test_a_connection_that_breaks_off_is_tried_again() -> None:
    def hang_up(handler: Any) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    def cut_short(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{")

    server = Server(hang_up, cut_short, GOOD)
    assert server.ask().text == "Hi."
    assert len(server.requests) == 3


def test_a_server_that_is_silent_or_sends_byte_by_byte_is_given_up() -> None:
    ended = threading.Event()

    def silent(handler: Any) -> None:
        ended.wait(10)

    def trickle(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not ended.is_set():
                handler.wfile.write(b" ")
                time.sleep(0.02)

    def dawdle(handler: Any) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not ended.is_set():
                handler.wfile.write(b"X-A: i\r\n")
                time.sleep(0.02)

    try:
        for slow in (silent, trickle, dawdle):
            begin_s = time.monotonic()
            text = "no answer within 0.2 s; wait until the server is less busy"
            with Server(slow).started() as url:
                with pytest.raises(ChatError, match=text):
                    ChatClient(url, "m", timeout_s=0.2, attempts=1).complete(HELLO)
                assert time.monotonic() - begin_s < 5
                ended.set()
            ended.clear()
    finally:
        ended.set()


def test_a_server_that_does_not_run_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    waits: list[float] = []
    client = ChatClient(f"http://127.0.0.1:{port}", "m", attempts=2, sleep=waits.append)
    text = f"^http://127.0.0.1:{port}: the connection is refused \\(2 attempts\\); check that the server runs there$"
    with pytest.raises(ChatError, match=text):
        client.complete(HELLO)
    assert len(waits) == 1


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:99999/v1", "http://me:pw@host/v1", "http://a b/v1",
     "http://host/v1?key=1", "http://host/\nx", "http://hôst/v1", "http://[::1"],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ChatError, match="must be the base URL of a chat server"):
        ChatClient(url, "m")


def test_the_whole_url_is_taken_as_the_base() -> None:
    assert ChatClient("https://host/v1/chat/completions", "m").url == "https://host/v1"


@pytest.mark.parametrize("key", ["", "two words", "line\nend", "schlüssel"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ChatError, match="set its environment variable to the key alone") as refused:
        ChatClient("http://host", "m", key=key)
    assert not key or key not in str(refused.value)


def test_settings_without_sense_are_refused() -> None:
    for options in ({"timeout_s": 0.0}, {"attempts": 0}):
        with pytest.raises(ValueError, match="must be above 0, and at least 1"):
            ChatClient("http://host", "m", **options)
