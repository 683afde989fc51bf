"""A client of chat servers: it asks any server that has OpenAI's `POST /chat/completions` for one answer at a time.

Only the standard library is used. A client holds no connection and no state, so threads may share one.
"""

import http.client
import json
import queue
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pit.errors import PitError
from pit.types import Message

MAX_ANSWER_BYTES = 16 * 2**20
"""Longest response that is read."""

LONGEST_WAIT_S = 60.0
"""Longest wait before another attempt, whatever the server asks for."""

_FIRST_WAIT_S = 0.5
_CHUNK_BYTES = 1 << 16
_TOLD = 300
"""Characters of a server's own words that an error repeats."""

_NO_API = "check that the URL is that of a chat API in OpenAI's format"
_REFUSALS = {
    401: "the server wants another key: set the environment variable of the key",
    403: "the server forbids it to this key: use another key or model",
    404: "check the URL, which usually ends in /v1, and the name of the model",
    429: "the server limits its requests: send fewer, or try again later",
}


_Value = TypeVar("_Value")


class ChatError(PitError):
    """A chat server gave no usable answer; the message is one line with the URL, the reason and the remedy."""


@dataclass(frozen=True)
class Completion:
    """One answer of a chat server.

    text: the answer.
    prompt_tokens: tokens of the conversation, as the server counts them; 0 where it does not.
    completion_tokens: tokens of the answer, as the server counts them; 0 where it does not.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


class _Attempt(Exception):
    """One attempt failed; another one, after at least `wait_s` seconds, may succeed if `again`."""

    def __init__(self, reason: str, remedy: str, *, again: bool, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.again, self.wait_s = reason, remedy, again, wait_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the key and the conversation are for the named server alone."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, so that the redirect is an error."""


class ChatClient:
    """A client of one model on one server.

    Args:
        url: base URL of the API, such as http://127.0.0.1:8000/v1.
        model: name of the model, as the server lists it.
        key: bearer token; None sends none.
        timeout_s: seconds until an attempt is given up, of the whole attempt.
        attempts: attempts per answer. Connections that fail and statuses 408, 409, 429 and 5xx are tried again, after
            a wait that doubles, or that the server asks for.
        sleep: function that waits for some seconds.

    Raises:
        ChatError: the URL or the key cannot be used.
        ValueError: `timeout_s` is not positive, or `attempts` is below 1.

    Example:
        >>> ChatClient("http://127.0.0.1:8000/v1/", "policy").url
        'http://127.0.0.1:8000/v1'
    """

    # Six parameters: what is asked, under which key, and how patiently.
    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        attempts: int = 4,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not timeout_s > 0 or attempts < 1:
            raise ValueError(
                f"timeout_s = {timeout_s}, attempts = {attempts}: must be above 0, and at least 1; use the defaults"
            )
        self.url, self.model = _checked_url(url), model
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "pit"}
        if key is not None:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ChatError(
                    "the key of the chat server is empty or holds a space or another character that no "
                    "header can hold; set its environment variable to the key alone"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s, self._attempts, self._sleep = timeout_s, attempts, sleep
        self._opener = urllib.request.build_opener(_NoRedirect)

    def models(self) -> list[str]:
        """Return the names of the server's models.

        Raises:
            ChatError: no usable answer after all attempts.
        """
        return self._tried("/models", None, _models)

    def complete(self, messages: Sequence[Message], **parameters: object) -> Completion:
        """Return the server's answer to a conversation.

        Args:
            messages: the conversation.
            parameters: further fields of the request, such as temperature=0 or max_tokens=100.

        Raises:
            ChatError: no usable answer after all attempts.
        """
        fields = {"model": self.model, "messages": [message._asdict() for message in messages], **parameters}
        return self._tried("/chat/completions", json.dumps(fields).encode(), _completion)

    def _tried(self, path: str, body: bytes | None, read: Callable[[bytes], _Value]) -> _Value:
        """Return what is read of the response to a request, tried again where that may help."""
        for attempt in range(1, self._attempts + 1):
            try:
                return read(self._request(path, body))
            except _Attempt as failure:
                if failure.again and attempt < self._attempts:
                    backoff_s = _FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(1, 1.25)
                    self._sleep(min(max(backoff_s, failure.wait_s), LONGEST_WAIT_S))
                    continue
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                raise ChatError(f"{self.url}: {failure.reason}{tried}; {failure.remedy}") from failure
        raise AssertionError("the last attempt returns or raises")

    def _request(self, path: str, body: bytes | None) -> bytes:
        """Return the body of a response, in a thread that is left behind when its time is over.

        The timeout of a socket is one of each read, which a server can draw out by sending little by little.
        """
        outcomes: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                outcomes.put(self._fetch(path, body))
            except Exception as error:
                outcomes.put(error)

        threading.Thread(target=ask, name="pit-chat", daemon=True).start()
        try:
            outcome = outcomes.get(timeout=self._timeout_s)
        except queue.Empty:
            raise self._broken(TimeoutError()) from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _fetch(self, path: str, body: bytes | None) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", body, self._headers)
        until_s = time.monotonic() + self._timeout_s
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return _read(response, until_s)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error, until_s) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> _Attempt:
        """Return the failure of an attempt in which no response came."""
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            return _Attempt(f"no answer within {self._timeout_s:g} s", "wait until the server is less busy", again=True)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _Attempt(f"its certificate is not accepted ({_line(str(cause))})", "check the URL", again=False)
        if isinstance(cause, socket.gaierror):
            return _Attempt("no such host is known", "check the URL and the network", again=True)
        if isinstance(cause, ConnectionRefusedError):
            return _Attempt("the connection is refused", "check that the server runs there", again=True)
        reason = _line(str(cause)) or type(cause).__name__
        return _Attempt(f"the connection failed ({reason})", "check the URL, the server and the network", again=True)


def _checked_url(url: str) -> str:
    """Return a base URL without a slash at its end.

    Raises:
        ChatError: it is not one.
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    plain = url.isascii() and url.isprintable() and not set(" ?#@") & set(url)
    if not (whole and plain):
        raise ChatError(
            f"URL {url!r}: must be the base URL of a chat server, without a user, a query or spaces; for example "
            "http://127.0.0.1:8000/v1"
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _read(response: Any, until_s: float) -> bytes:
    """Return the body of a response, or give up at a time, so that the thread of a given-up attempt ends as well."""
    chunks, size = [], 0
    while chunk := response.read1(_CHUNK_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise _Attempt(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes", "ask for fewer tokens", again=False)
        if time.monotonic() > until_s:
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(chunks)


def _refusal(error: urllib.error.HTTPError, until_s: float) -> _Attempt:
    """Return the failure of an attempt that the server answered by an error."""
    status = error.code
    try:
        text = _words(_read(error, until_s))
    except (OSError, http.client.HTTPException, _Attempt):
        text = ""
    reason = f"status {status}" + (f", {text!r}" if text else "")
    if 300 <= status < 400:
        target = _line(error.headers.get("Location") or "another address")
        return _Attempt(f"{reason}: redirects to {target}", "give the URL that it names, if you trust it", again=False)
    again = status in (408, 409, 429) or status >= 500
    fallback = "try again later, or look into the server's log" if again else "correct the request, as the server says"
    return _Attempt(reason, _REFUSALS.get(status, fallback), again=again, wait_s=_asked_wait_s(error))


def _asked_wait_s(error: urllib.error.HTTPError) -> float:
    """Return the seconds that the server asks to wait, 0 where it names none."""
    text = error.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _words(body: bytes) -> str:
    """Return what a body says of an error: the message in OpenAI's error object, or its first line."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)["error"]
        text = said["message"] if isinstance(said, dict) else said
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return _line(str(text))


def _line(text: str) -> str:
    """Return a text as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _TOLD else f"{line[: _TOLD - 1]}…"


def _models(body: bytes) -> list[str]:
    """Return the names in the body of a list of models.

    Raises:
        _Attempt: it is none.
    """
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        begin = _line(body[:_TOLD].decode("utf-8", "replace"))
        raise _Attempt(f"the response holds no list of models: {begin!r}", _NO_API, again=False) from error


def _completion(body: bytes) -> Completion:
    """Return the completion in the body of a response.

    Raises:
        _Attempt: it holds none, or one without text.
    """
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text, usage = choice["message"]["content"], answer.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        begin = body[:_TOLD].decode("utf-8", "replace")
        raise _Attempt(f"the response holds no chat completion: {_line(begin)!r}", _NO_API, again=False) from error
    if not isinstance(text, str) or not text.strip():
        finish = choice.get("finish_reason")
        raise _Attempt(
            f"the answer has no text (finish_reason {finish!r})",
            "allow it more tokens, or change the prompt",
            again=False,
        )
    return Completion(text, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def _count(usage: object, name: str) -> int:
    """Return a number of tokens, 0 where the server tells none: the answer does not depend on it."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else 0
