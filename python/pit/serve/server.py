"""The process of `pit serve`: a socket, the models of a run, uvicorn, and an orderly end on a signal."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn

from pit.config import ConfigError
from pit.data.errors import DataError
from pit.improve import Models, config_of
from pit.run.folder import Run
from pit.serve.connection import Connection
from pit.serve.http import application
from pit.serve.protocol import MODELS
from pit.serve.service import Service
from pit.terminal import say

WARM_UP_S = 60.0
"""Seconds of a warm-up after which it compiles for no further size of batch; later starts find programs on disk."""

_LAST_S = 5.0
"""Seconds that responses and the worker get for their end once all requests have ended."""


@dataclass(frozen=True)
class Address:
    """Address of a server, and its guards.

    host: name or IP address to listen on; port: 0 takes a free one.
    key: bearer token that requests must have; None for no key.
    room: most answers that wait.
    drain_s: seconds that requests get to end after a signal.
    """

    host: str
    port: int
    key: str | None
    room: int
    drain_s: float


def serve(
    run: Run,
    changes: Mapping[str, Any],
    address: Address,
    *,
    budget: int | None = None,
    warm: bool = True,
    tell: Callable[[str], None] = say,
) -> None:
    """Serve a finished run until SIGTERM or SIGINT.

    Args:
        run: the run.
        changes: fields of the run's config section `improve` to change.
        address: where, and under which guards.
        budget: most tokens per prompt, whose split `pit search` has chosen; None for the one of the config.
        warm: compile what requests will use before the first of them.
        tell: receives a line about that, and one once the server listens.

    Raises:
        ConfigError: the address cannot be listened on, or there is no split of the budget.
    """

    def warn(text: str) -> None:
        say(text, error=True)

    config = config_of(run, changes, budget)
    with _bound(address.host, address.port) as listening:
        models = Models.load(run, run.config.reward_gap.packing, config=config)
        service = Service(run.template, models, config, room=address.room, tell=warn)
        if warm:
            _warm_up(service, run, config.batch, tell)
        service.start()
        host, port = listening.getsockname()[:2]
        if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            unguarded = ", without a key (--api-key-env sets one)" if address.key is None else ""
            warn(f"pit: listens on {host}, which other machines can reach{unguarded}, over HTTP that is not encrypted")
        server = _Server(service, application(service, address.key), address.drain_s)
        name = f"[{host}]" if ":" in host else host
        server.on_start = lambda: tell(f"serves {run.folder} at http://{name}:{port}/v1, models {', '.join(MODELS)}")
        server.run(sockets=[listening])
    service.close()
    if not service.join(_LAST_S):
        # The worker is inside a compiled program that nothing can interrupt.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _warm_up(service: Service, run: Run, most: int, tell: Callable[[str], None]) -> None:
    """Compile programs of the batches that conversations of the run's own data make, and say which."""
    begin_s = time.perf_counter()
    try:
        fold = run.fold("eval")
        inputs = fold.columns(list(range(min(most, len(fold)))))[0]
    except DataError as error:
        # A run answers without its data too.
        say(f"pit: starts without a warm-up, because it has no prompts of the run: {error}", error=True)
        return
    sizes, left = service.warm_up([run.template.decode_prompt(ids) for ids in inputs], budget_s=WARM_UP_S)
    later = f"; those of {_listed(left)} when they come, unless they are on disk" if left else ""
    tell(
        f"compiled in {time.perf_counter() - begin_s:.0f} s for prompts as in the run's data, in batches of "
        f"{_listed(sizes)} answers{later}"
    )


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) or "no"


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket, which refuses connections until the server listens on it.

    Raises:
        ConfigError: the address is in use, forbidden, or none of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"--host = {host}: is no address of this machine ({error.strerror}); use 127.0.0.1"
        ) from error
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place)
        except OSError as error:
            raise ConfigError(
                f"--host = {host}, --port = {port}: cannot be listened on ({error.strerror}); give another port, for "
                f"example --port {port + 1 if 0 < port < 65535 else 8000}, or another address of this machine"
            ) from error
        yield listening


class _Server(uvicorn.Server):
    """A server that ends in order: after a signal no new request is taken, and those in progress get some time.

    A second signal ends them at once.
    """

    def __init__(self, service: Service, app: Any, drain_s: float) -> None:
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(drain_s + _LAST_S),
            )
        )
        self._service, self._drain_s = service, drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self.on_start: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the requests in progress end, or end them after some time."""
        self._service.close()
        end = asyncio.get_running_loop().call_later(self._drain_s, self._service.end)
        await super().shutdown(sockets)
        end.cancel()
        self._service.end()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end the server, instead of raising them again after its end."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End the server; a second signal ends all requests at once."""
        if self.should_exit and self._loop is not None:
            # Not from here: the signal may have interrupted whoever holds the lock.
            self._loop.call_soon_threadsafe(self._service.end)
        self.should_exit = True
