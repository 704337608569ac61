"""Handshake: a TLS connection from the moment it is accepted until TLS has let it in.

asyncio's own servers know nothing of a connection before its handshake is over, so that clients
that connect and say nothing could take every descriptor. Here they have a place in the room from
the start, and make way as those do that never ask anything.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from edgekit_runtime.serving.connection import Connection
from edgekit_runtime.serving.room import Room

log = logging.getLogger(__name__)

# Accepted in one turn of the loop.
_AT_ONCE = 64
# How long nobody is accepted where the system has no descriptor left.
_PAUSE_S = 0.5
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Handshake:
    """One client that has not shown yet that it speaks TLS. Used on the event loop.

    Attributes:
        since: when it was accepted.
    """

    is_idle = True
    has_asked = False

    def __init__(self, end: socket.socket, *, now: float) -> None:
        self.since = now
        self._end = end
        self._task: asyncio.Task[None] | None = None

    def start(self, task: asyncio.Task[None]) -> None:
        """Note what carries it on."""
        self._task = task

    def check(self, now: float) -> None:
        """Nothing: asyncio ends a handshake that takes too long."""

    def close(self) -> None:
        """Give it up."""
        if self._task is None:
            self._end.close()
        else:
            self._task.cancel()

    abort = close


class TlsListener:
    """Accepts TLS connections at one socket, which is bound already. Used on the event loop.

    Args:
        listener: bound and listening, not blocking.
        context: TLS of the server.
        make: makes what handles a connection.
        room: where connections find their place.
        limit_s: for a handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        context: ssl.SSLContext,
        make: Callable[[], Connection],
        room: Room,
        limit_s: float,
    ) -> None:
        self._listener = listener
        self._context = context
        self._make = make
        self._room = room
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept nobody more. Connections and handshakes stay."""
        if self._pause is None:
            self._loop.remove_reader(self._listener)
        else:
            self._pause.cancel()
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                end, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as e:
                if e.errno not in _NO_DESCRIPTORS:
                    raise
                log.warning("no client is accepted for a while", extra={"reason": str(e)})
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(_PAUSE_S, self._resume)
                return
            end.setblocking(False)
            self._begin(end)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _begin(self, end: socket.socket) -> None:
        handshake = Handshake(end, now=self._loop.time())
        if self._room.enter(handshake):
            handshake.start(self._loop.create_task(self._shake(handshake, end)))
        else:
            # Who speaks no TLS yet cannot be told why.
            self._room.leave(handshake)
            end.close()

    async def _shake(self, handshake: Handshake, end: socket.socket) -> None:
        connection = self._make()
        self._room.expect(connection, instead_of=handshake)
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                end,
                ssl=self._context,
                ssl_handshake_timeout=self._limit_s,
            )
        except OSError as e:
            log.debug("no TLS connection", extra={"reason": str(e)})
        finally:
            self._room.forget(connection)
            self._room.leave(handshake)
