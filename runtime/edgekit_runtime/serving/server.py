"""Server: listens on TCP and Unix sockets and serves what `Models` holds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import ServingError, UsageError
from edgekit_runtime.serving.address import Address, Tcp, Unix
from edgekit_runtime.serving.app import App, Service
from edgekit_runtime.serving.connection import Connection, Limits
from edgekit_runtime.serving.models import Models

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
_SWEEP_S = 1.0


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where it is installed, else asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class Server:
    """Open Inference Protocol v2 for a table of models.

    Args:
        models: what is served; it may change while the server runs.
        listen: where; at least one address.
        insecure: allows addresses that other machines can reach, for which there is no
            authentication yet.
        limits: what a client may take.
    """

    def __init__(
        self,
        models: Models,
        *,
        listen: Sequence[Address],
        insecure: bool = False,
        limits: Limits | None = None,
    ) -> None:
        for address in listen:
            if isinstance(address, Tcp) and not address.is_loopback and not insecure:
                raise UsageError(
                    f"{address} can be reached by other machines, which nobody would have to prove"
                    " who they are",
                    hint="listen on 127.0.0.1 or a Unix socket, or allow it with --insecure",
                )
        self._models = models
        self._listen = tuple(listen)
        self._limits = limits or Limits()
        self._service: Service | None = None
        self._servers: list[asyncio.Server] = []
        self._addresses: list[Address] = []
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens, with the ports that the system chose."""
        return list(self._addresses)

    async def start(self) -> None:
        """Listen on every address or on none, raising `ServingError` for the first in the way."""
        loop = asyncio.get_running_loop()
        self._service = Service(self._models, limits=self._limits, loop=loop)
        try:
            for address in self._listen:
                await self._open(address, loop)
        except BaseException:
            await self.close(timeout_s=0)
            raise
        self._sweep()
        where = " ".join(map(str, self._addresses))
        log.info("server listens", extra={"on": where})

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Take no new connections, finish requests under way, then drop what is left."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for server in self._servers:
            server.close()
        self._servers = []
        for address in self._addresses:
            if isinstance(address, Unix):
                address.path.unlink(missing_ok=True)
        self._addresses = []
        if self._service is None:
            return
        loop = asyncio.get_running_loop()
        connections = self._service.connections
        for connection in list(connections):
            connection.close()
        until = loop.time() + timeout_s
        while connections and loop.time() < until:
            await asyncio.sleep(0.01)
        for connection in list(connections):
            connection.abort()
        # `connection_lost` of what was dropped comes in the next turn of the loop.
        await asyncio.sleep(0)

    async def _open(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        assert self._service is not None
        service = self._service
        try:
            if isinstance(address, Unix):
                app = App(service, address)
                _clear(address.path)
                server = await loop.create_unix_server(
                    lambda: Connection(app, now=loop.time), str(address.path)
                )
                self._servers.append(server)
                self._addresses.append(address)
                os.chmod(address.path, SOCKET_MODE)
                return
            app = App(service, address)
            server = await loop.create_server(
                lambda: Connection(app, now=loop.time), address.host, address.port
            )
        except OSError as e:
            raise _cannot_listen(address, e) from e
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        self._addresses.append(Tcp(address.host, port))

    def _sweep(self) -> None:
        """Now and then look for clients that take too long."""
        assert self._service is not None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._service.connections):
            connection.check(now)
        limits = self._limits
        shortest = min(limits.receive_s, limits.idle_s, limits.send_s)
        self._sweeper = loop.call_later(min(_SWEEP_S, shortest / 2), self._sweep)


def _clear(path: Path) -> None:
    """Remove the socket of a server that is gone; one that answers is in use."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(ConnectionRefusedError):
        probe.connect(str(path))
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink(missing_ok=True)


def _cannot_listen(address: Address, error: OSError) -> ServingError:
    if error.errno == errno.EADDRINUSE:
        return ServingError(
            f"{address} is in use by another program",
            hint="stop it, or choose another address with --listen or --unix",
        )
    return ServingError(f"cannot listen on {address}: {error.strerror or error}")
