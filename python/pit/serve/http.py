"""The HTTP side of `pit serve`: OpenAI's chat API as a Starlette application over a `Service`."""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pit.serve.answers import Answer
from pit.serve.protocol import MODELS, ApiError, ChatRequest
from pit.serve.service import Service

MAX_BODY_BYTES = 4 * 2**20
"""Longest body of a request."""

KEEP_ALIVE_S = 10.0
"""Seconds of silence in a stream after which a comment is sent, so that nothing on the way gives it up."""

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class _Grew(NamedTuple):
    choice: int
    text: str


class _Finished(NamedTuple):
    choice: int
    answer: Answer


class _Waiting:
    """The listener of one request: what the worker thread tells becomes events of the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[_Grew | _Finished | ApiError] = asyncio.Queue()
        self.gone = False

    def grew(self, choice: int, text: str) -> None:
        """Take more text of an answer."""
        self._tell(_Grew(choice, text))

    def finished(self, choice: int, answer: Answer) -> None:
        """Take an answer that has ended."""
        self._tell(_Finished(choice, answer))

    def failed(self, error: ApiError) -> None:
        """Take the error that ends the request."""
        self._tell(error)

    def _tell(self, event: _Grew | _Finished | ApiError) -> None:
        if not self.gone and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


def application(service: Service, key: str | None = None) -> Starlette:
    """Return the application.

    Args:
        service: a service that is started.
        key: bearer token that every request but /health must have; None for no key.
    """
    created = int(time.time())

    async def health(request: Request) -> Response:
        return _json({"status": "ok", "waiting": service.waiting})

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [_model(name, created) for name in MODELS]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in MODELS:
            text = f"the model {name!r} does not exist; ask for one of {', '.join(MODELS)}"
            raise ApiError(text, status=404, param="model", code="model_not_found")
        return _json(_model(name, created))

    async def chat(request: Request) -> Response:
        return await _chat(service, request)

    async def failed(request: Request, error: Exception) -> Response:
        return await _api_error(request, service.unexpected(error))

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            try:
                _require_key(request, key)
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)

        return checked

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", guarded(models)),
            Route("/v1/models/{name:path}", guarded(model)),
            Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: failed},
    )


async def _chat(service: Service, request: Request) -> Response:
    """Answer a chat request, as a whole or as a stream."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A web page cannot send this type to another site unasked, so none can use the server of its visitor.
        raise ApiError(f"the body is of type {kind!r}; send it with 'Content-Type: application/json'", status=415)
    waiting = _Waiting()
    service.enter(waiting)
    try:
        body = await _body_or_end(request, waiting)
        asked = await anyio.to_thread.run_sync(service.read, body)
        service.submit(asked, waiting)
    except BaseException:
        service.leave(waiting)
        raise
    head = _Head(asked, service)
    if asked.stream:
        return _EventStream(service, head, waiting)
    try:
        return await _whole(request, head, waiting)
    finally:
        waiting.gone = True
        service.leave(waiting)


async def _whole(request: Request, head: "_Head", waiting: _Waiting) -> Response:
    """Return the response with all answers; a client that goes away ends the wait."""
    answers: dict[int, Answer] = {}
    watching = asyncio.create_task(_disconnected(request))
    try:
        while len(answers) < head.asked.choices:
            event = asyncio.create_task(waiting.events.get())
            await asyncio.wait({event, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                raise ClientDisconnect
            match event.result():
                case ApiError() as error:
                    raise error
                case _Finished(choice, answer):
                    answers[choice] = answer
    finally:
        watching.cancel()
    return _json(head.completion([answers[choice] for choice in range(head.asked.choices)]))


async def _disconnected(request: Request) -> None:
    """Return when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """The stream of a request's answers; the request is left when it ends, or when the client goes away."""

    def __init__(self, service: Service, head: "_Head", waiting: _Waiting) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(head, waiting), media_type="text/event-stream", headers=headers)
        self._service, self._waiting = service, waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._waiting.gone = True
            self._service.leave(self._waiting)


async def _events(head: "_Head", waiting: _Waiting) -> AsyncIterator[str]:
    """Yield the events of a stream."""
    answers: dict[int, Answer] = {}
    sent = [0] * head.asked.choices
    for choice in range(head.asked.choices):
        yield head.event(choice, {"role": "assistant", "content": ""})
    while len(answers) < head.asked.choices:
        try:
            event = await asyncio.wait_for(waiting.events.get(), KEEP_ALIVE_S)
        except TimeoutError:
            yield ": waiting\n\n"
            continue
        match event:
            case ApiError():
                yield _event(event.body())
                return
            case _Grew(choice, text):
                sent[choice] += len(text)
                yield head.event(choice, {"content": text})
            case _Finished(choice, answer):
                answers[choice] = answer
                rest = answer.text[sent[choice] :]
                if rest:
                    yield head.event(choice, {"content": rest})
                yield head.event(choice, {}, answer)
    if head.asked.include_usage:
        yield _event({**head.chunk([]), "usage": head.usage(list(answers.values()))})
    yield "data: [DONE]\n\n"


class _Head:
    """The parts that all objects of one response share."""

    def __init__(self, asked: ChatRequest, service: Service) -> None:
        self.asked = asked
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        tokens, closings = asked.question.tokens, service.template.closings
        prompt = len(tokens.prompt) + len(closings.input)
        self._prompt_tokens = prompt if asked.question.answer is None else prompt + len(tokens.better)

    def completion(self, answers: list[Answer]) -> dict[str, Any]:
        """Return the object of a whole response."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                **self._ending(answer),
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._common, "object": "chat.completion", "choices": choices, "usage": self.usage(answers)}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the object of a piece of a stream."""
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**self._common, "object": "chat.completion.chunk", "choices": choices, **usage}

    def event(self, index: int, delta: dict[str, str], ended: Answer | None = None) -> str:
        """Return the event of a piece of one answer."""
        ending = {"logprobs": None, "finish_reason": None} if ended is None else self._ending(ended)
        return _event(self.chunk([{"index": index, "delta": delta, **ending}]))

    def usage(self, answers: list[Answer]) -> dict[str, Any]:
        """Return the tokens of the conversation and of all answers that were drawn."""
        drawn, hidden = sum(answer.tokens for answer in answers), sum(answer.hidden for answer in answers)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": drawn,
            "total_tokens": self._prompt_tokens + drawn,
            "completion_tokens_details": {"reasoning_tokens": hidden},
        }

    def _ending(self, answer: Answer) -> dict[str, Any]:
        record = {} if answer.record is None else {"pit": answer.record}
        return {"logprobs": None, "finish_reason": answer.finish, **record}


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "pit"}


async def _body_or_end(request: Request, waiting: _Waiting) -> bytes:
    """Return the body of a request; a client that sends it slowly does not outlast the service.

    Raises:
        ApiError: it is too long, or the service has ended.
    """
    reading, ending = asyncio.create_task(_body(request)), asyncio.create_task(waiting.events.get())
    try:
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            event = ending.result()
            assert isinstance(event, ApiError), "nothing is drawn yet"
            raise event
        return reading.result()
    finally:
        reading.cancel()
        ending.cancel()


async def _body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: it is too long.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise ApiError(f"the body has more than {MAX_BODY_BYTES:,} bytes; shorten it", status=413)
    return b"".join(chunks)


def _require_key(request: Request, key: str | None) -> None:
    """Raise unless the request has the key, compared in a time that tells nothing about it.

    Raises:
        ApiError: it has not.
    """
    # The scheme may be in any case (RFC 9110, section 11.1).
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if key is not None and not (hmac.compare_digest(given.encode(), key.encode()) and scheme.lower() == "bearer"):
        raise ApiError(
            "the API key is missing or wrong; send the server's key as 'Authorization: Bearer KEY'",
            status=401,
            code="invalid_api_key",
        )


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _json(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    text = {
        404: f"{path!r} is not an address of this server; it has /v1/chat/completions, /v1/models and /health",
        405: f"{path!r} does not take {method}; ask for chat completions with POST, for anything else with GET",
    }.get(error.status_code, error.detail)
    return _json(ApiError(text, status=error.status_code).body(), error.status_code, error.headers)


def _json(content: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _event(content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"
