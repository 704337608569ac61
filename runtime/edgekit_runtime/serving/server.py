"""Server: listens on TCP and Unix sockets, and for gRPC where asked, for what `Models` holds.

It listens on every address or on none, and only where strangers cannot ask.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import UsageError
from edgekit_runtime.serving import listen as listening
from edgekit_runtime.serving.access import Access, Credentials
from edgekit_runtime.serving.address import Address, Tcp, Unix
from edgekit_runtime.serving.app import App, Service
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.bell import Bell
from edgekit_runtime.serving.connection import Connection
from edgekit_runtime.serving.handshake import TlsListener
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.repository import Repository
from edgekit_runtime.serving.tls import Tls

if TYPE_CHECKING:
    from edgekit_runtime.serving.grpc.server import GrpcServer

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
# Connections that wait to be accepted; the system's own bound (somaxconn) holds too.
_BACKLOG = 1024


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
        grpc: where gRPC is served beside HTTP.
        bell: socket for programs that share memory.
        tokens: file of those who may ask from other machines (`tokens`).
        tls: for every TCP address.
        insecure: allows addresses where strangers could ask, and tokens without TLS.
        limits: what a client may take.
        repository: what can be loaded and unloaded while the server runs.

    Raises:
        UsageError: strangers could ask at an address, or gRPC is not installed.
        ConfigError: tokens, certificates or keys cannot be read, or others could read them.
    """

    def __init__(
        self,
        models: Models,
        *,
        listen: Sequence[Address],
        grpc: Tcp | None = None,
        bell: Path | None = None,
        tokens: Path | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        repository: Repository | None = None,
    ) -> None:
        self._models = models
        self._credentials = Credentials(tokens=tokens, tls=tls, insecure=insecure)
        self._listen = [self._credentials.access(_with_tls(one, tls)) for one in listen]
        self._limits = limits or Limits()
        self._repository = repository
        self._grpc_access = None if grpc is None else self._credentials.access(_with_tls(grpc, tls))
        self._service: Service | None = None
        self._apps: list[App] = []
        self._servers: list[asyncio.Server | TlsListener] = []
        self._grpc: GrpcServer | None = None
        self._bell_path = bell
        self._bell: Bell | None = None
        self._addresses: list[Address] = []
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        if self._grpc_access is not None:
            _import_grpc()

    @property
    def addresses(self) -> list[Address]:
        """Where the server listens for HTTP, with the ports that the system chose."""
        return list(self._addresses)

    @property
    def grpc_address(self) -> Tcp | None:
        """Where it listens for gRPC."""
        return None if self._grpc is None else self._grpc.address

    async def start(self) -> None:
        """Listen on every address or on none, raising `ServingError` for the first in the way."""
        loop = asyncio.get_running_loop()
        self._models.attach(loop)
        self._service = service = Service(
            self._models, limits=self._limits, loop=loop, repository=self._repository
        )
        try:
            for access in self._listen:
                await self._open(access, loop)
            if self._grpc_access is not None:
                kind = _import_grpc()
                self._grpc = kind(service, self._grpc_access, tls=self._credentials.tls)
                await self._grpc.start()
            if self._bell_path is not None:
                self._bell = Bell(
                    self._bell_path,
                    models=self._models,
                    inference=service.inference,
                    others=lambda: len(service.room.connections),
                )
                self._bell.start()
        except BaseException:
            await self.close(timeout_s=0)
            raise
        self._sweep()
        where = " ".join(map(str, self._addresses))
        log.info("server listens", extra={"on": where})

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Take no new connections, finish requests under way, then drop what is left."""
        if self._timer is not None:
            self._timer.cancel()
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
        connections = self._service.room.connections
        for connection in list(connections):
            connection.close()
        bell = self._bell
        if bell is not None:
            bell.retire()
        until = loop.time() + timeout_s
        if self._grpc is not None:
            await self._grpc.close(timeout_s=timeout_s)
        while (connections or (bell is not None and bell.callers)) and loop.time() < until:
            await asyncio.sleep(0.01)
        for connection in list(connections):
            connection.abort()
        if bell is not None:
            bell.close()
        # `connection_lost` of what was dropped comes in the next turn of the loop.
        await asyncio.sleep(0)
        await self._service.close()
        self._models.attach(None)

    async def _open(self, access: Access, loop: asyncio.AbstractEventLoop) -> None:
        assert self._service is not None
        app = App(self._service, access)
        address = access.listener

        def connection() -> Connection:
            return Connection(app, now=loop.time)

        try:
            if isinstance(address, Unix):
                listening.clear(address.path)
                server = await loop.create_unix_server(connection, str(address.path))
                self._servers.append(server)
                self._addresses.append(address)
                os.chmod(address.path, listening.SOCKET_MODE)
            else:
                ends = await listening.bind(address.host, address.port, backlog=_BACKLOG)
                port = ends[0].getsockname()[1]
                for end in ends:
                    self._servers.append(await self._accept(end, connection))
                self._addresses.append(msgspec.structs.replace(address, port=port))
        except OSError as e:
            raise listening.cannot_listen(address, e) from e
        self._apps.append(app)

    async def _accept(
        self, end: socket.socket, connection: Callable[[], Connection]
    ) -> asyncio.Server | TlsListener:
        assert self._service is not None
        context = self._credentials.context
        if context is None:
            loop = asyncio.get_running_loop()
            return await loop.create_server(connection, sock=end, backlog=_BACKLOG)
        return TlsListener(
            end,
            context=context,
            make=connection,
            room=self._service.room,
            limit_s=self._limits.handshake_s,
        )

    def _sweep(self) -> None:
        """Now and then look for clients that take too long, and for other tokens and certificates.

        Many connections are looked at in several turns of the loop.
        """
        assert self._service is not None
        loop = asyncio.get_running_loop()
        if self._service.room.check_some():
            self._timer = loop.call_soon(self._sweep)
            return
        if self._credentials.refresh():
            for app in self._apps:
                app.forget()
        limits = self._limits
        shortest = min(limits.receive_s, limits.idle_s, limits.send_s)
        self._timer = loop.call_later(min(_SWEEP_S, shortest / 2), self._sweep)


def _with_tls(address: Address, tls: Tls | None) -> Address:
    if tls is None or not isinstance(address, Tcp):
        return address
    return msgspec.structs.replace(address, is_tls=True)


def _import_grpc() -> type[GrpcServer]:
    """gRPC's side of the server, which only whoever asks for it needs."""
    try:
        from edgekit_runtime.serving.grpc.server import GrpcServer
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] not in ("grpc", "google"):
            raise
        raise UsageError("gRPC is not installed here", hint="pip install 'edgekit-ml[grpc]'") from e
    return GrpcServer
