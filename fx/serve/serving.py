"""The server: it listens, and ends when a signal comes and what is under way is answered."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from extract.errors import FxError
from extract.files import place
from extract.records import Record
from fx.interruption import takes_time_to_end
from fx.options import Options
from fx.output import Begin
from fx.serve.app import make_app
from fx.serve.batching import Batcher, open_to_serve
from fx.serve.limits import Limits

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
BACKLOG = 1024  # connections that wait to be accepted
SECONDS_IDLE = 15  # of a connection that is kept
SECONDS_TO_CLOSE = 3  # for connections and threads, beside the requests


class Serving(Record, frozen=True):
    """A server that answers.

    Attributes
    ----------
    model : as it was named
    url : of the page
    local : whether only this machine reaches it
    explains : whether heat maps or training images are shown
    classes : in the order of all probabilities
    """

    model: str
    url: str
    local: bool
    explains: bool
    classes: tuple[str, ...]


def serve_model(
    model: Path,
    options: Options,
    limits: Limits,
    *,
    host: str,
    port: int,
    begin: Begin | None,
    begun: Callable[[Serving], None],
) -> None:
    """Serve a model until a signal comes.

    Parameters
    ----------
    model : folder of a head or a fine-tuned network
    options : as of ``open_to_serve``
    limits : from where on requests are refused
    host, port : to listen at; port 0 for any that is free
    begin : given what is being done, returns a progress callback; None for no explanations
    begun : called once requests are answered

    Raises
    ------
    FxError
        If the model cannot be opened, or the port not be listened at.
    """
    # first: a port may be taken, and the model takes seconds
    with (
        _listening(host, port) as listening,
        Batcher(open_to_serve(model, options, begin)) as batcher,
    ):
        address, chosen = listening.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        url = f"http://{name}:{chosen}/"
        local = ipaddress.ip_address(address).is_loopback
        explains = batcher.model.explain is not None
        record = Serving(str(place(model)), url, local, explains, batcher.model.classes)
        # a page of another site may have its own name lead to this machine
        hosts = [host, name, *LOCAL_NAMES] if local else ["*"]
        app = make_app(str(place(model)), batcher, limits, hosts)
        takes_time_to_end(2 * limits.timeout + SECONDS_TO_CLOSE)
        Server(app, limits, lambda: begun(record)).run([listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        # Python adds the address to the system's words
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise FxError(
            f"cannot listen at `port` {port} of {host} ({reason}); give another"
        ) from error


class Server(uvicorn.Server):
    """Uvicorn's, with limits; calls ``begun`` once requests are answered."""

    def __init__(self, app: FastAPI, limits: Limits, begun: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=H11Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=limits.connections,
            timeout_keep_alive=min(SECONDS_IDLE, limits.timeout),
            timeout_graceful_shutdown=2 * limits.timeout,
        )
        super().__init__(config)
        self._limits = limits
        self._begun = begun

    async def main_loop(self) -> None:
        """Answer until ``should_exit``."""
        watch = asyncio.create_task(self._close_slow_connections())
        self._begun()
        await super().main_loop()
        watch.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, at the first signal."""
        # A terminal's SIGINT comes twice: from itself, and passed on by the process that was
        # started, which also ends this one where a second one is meant. uvicorn would not wait.
        if not self.should_exit:
            super().handle_exit(sig, frame)

    async def _close_slow_connections(self) -> None:
        """Close connections that neither send a whole request nor fetch its answer in time.

        uvicorn waits for the head of a request for ever, and reads on what has been refused. While
        a request is answered, the application minds the time.
        """
        since: dict[H11Protocol, tuple[object, float]] = {}
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            idle = {
                one: one.cycle
                for one in self.server_state.connections
                if isinstance(one, H11Protocol)
                and (one.cycle is None or one.cycle.response_complete)
            }
            since = {
                one: since[one] if one in since and since[one][0] is cycle else (cycle, now)
                for one, cycle in idle.items()
            }
            for connection, (_, begun) in since.items():
                if now - begun > self._limits.timeout:
                    connection.transport.abort()
