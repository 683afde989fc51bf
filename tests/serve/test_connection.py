"""Connections of `pit serve` over sockets: requests that arrive slowly, or never, and those that do not."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn

from pit.serve import server
from pit.serve.connection import Connection
from pit.serve.service import Service

LIMIT_S = 0.5
GET = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 4\r\n\r\n"


class Quick(Connection):
    """A connection with little patience."""

    request_s = LIMIT_S


async def application(scope, receive, send):
    """Answer with the body; a GET takes longer than a request may take to arrive, an early one waits for no body."""
    body = b""
    if scope["method"] == "GET":
        await asyncio.sleep(2 * LIMIT_S)
    elif scope["path"] != "/early":
        while True:
            event = await receive()
            body += event.get("body", b"")
            if event["type"] == "http.disconnect" or not event.get("more_body"):
                break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address():
    """Yield the address of a server with such connections."""
    config = uvicorn.Config(application, http=Quick, ws="none", lifespan="off", log_config=None, loop="asyncio")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until = time.monotonic() + 60
            while not running.started and time.monotonic() < until:
                time.sleep(0.01)
            yield listening.getsockname()
        finally:
            running.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def received(connection):
    """Return all bytes until the server closes the connection."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(4096):
            data += piece
    return data


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: here\r\n", POST + b"ab"])
def test_a_request_that_does_not_arrive_gets_status_408(address, begin):
    with socket.create_connection(address, timeout=20) as connection:
        began = time.monotonic()
        connection.sendall(begin)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert time.monotonic() - began >= LIMIT_S * 0.9
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(body)["error"] == {
        "message": f"the request did not arrive within {LIMIT_S:g} s; send it at once",
        "type": "invalid_request_error",
        "param": None,
        "code": "timeout",
    }


def test_a_byte_now_and_then_does_not_keep_a_connection(address):
    with socket.create_connection(address, timeout=20) as connection:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in b"GET / HTTP/1.1\r\nx: " + b"y" * 200:
                connection.sendall(bytes([byte]))
                time.sleep(LIMIT_S / 8)
                if time.monotonic() - began > 10 * LIMIT_S:
                    break
        assert time.monotonic() - began < 8 * LIMIT_S


def test_a_request_in_time_may_be_answered_later_and_the_next_one_has_time_of_its_own(address):
    with socket.create_connection(address, timeout=20) as connection:
        for request, answer in ((GET, b""), (POST + b"abcd", b"abcd"), (GET, b"")):
            time.sleep(LIMIT_S * 0.7)
            connection.sendall(request)
            data = b""
            while b"\r\n\r\n" not in data or not data.endswith(answer):
                data += connection.recv(4096)
            assert data.startswith(b"HTTP/1.1 200 ")
            # uvicorn bounds the wait for another request by itself.
        connection.sendall(b"GET / HT")
        assert received(connection).startswith(b"HTTP/1.1 408 ")


def test_the_rest_of_a_body_that_nobody_needs_is_not_waited_for(address):
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(POST.replace(b"/ ", b"/early ", 1) + b"ab")
        assert received(connection).startswith(b"HTTP/1.1 200 ")


def test_the_server_has_such_connections():
    config = server._Server(object.__new__(Service), application, 1.0).config
    config.load()
    assert config.http_protocol_class is Connection
    assert Connection.request_s == 30.0
