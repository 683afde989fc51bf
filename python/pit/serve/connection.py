"""A connection of `pit serve` on which a request must arrive in time, so that slow senders cannot pile up.

uvicorn bounds the wait between two requests of a connection, and neither that for the first nor that for the rest of
one that has begun.
"""

import asyncio
import json
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pit.serve.protocol import ApiError

REQUEST_S = 30.0
"""Seconds from its first byte, or from the opening of its connection, in which a request must be whole."""

_ARRIVING = (h11.IDLE, h11.SEND_BODY)
"""States of a client whose request has not arrived yet."""


class Connection(H11Protocol):
    """A connection that ends with status 408 if a request does not arrive in time."""

    request_s: ClassVar[float] = REQUEST_S
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type] # uvicorn narrows the type.
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read what a client sends; a whole request ends the wait for it, and the first bytes of another begin one."""
        super().data_received(data)
        if self.conn.their_state not in _ARRIVING:
            self._stop()
        elif self._late is None:
            self._wait()

    def on_response_complete(self) -> None:
        """Read on; the rest of a body that was not needed, or of the next one, must arrive in time as well."""
        super().on_response_complete()
        self._stop()
        if self.conn.their_state is h11.SEND_BODY:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait with the connection."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.request_s, self._end)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        """Say that the request is late, unless its response has begun, and close the connection."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_late_response(self.request_s))
        self.transport.close()


def _late_response(seconds: float) -> bytes:
    text = f"the request did not arrive within {seconds:g} s; send it at once"
    body = json.dumps(ApiError(text, status=408, code="timeout").body()).encode()
    head = (
        f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
