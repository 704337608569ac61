"""LinkProxy: a TCP proxy that stands for a bad link; any client, any server, TLS or not.

Promise: bytes are delivered in order and unchanged, or not at all. What it counts are the bytes
that it handed to the receiving end, so a byte that was cut off on its way does not count, but for
the few that the kernel still holds. The first packet of a connection cannot be lost here: the
kernel accepts it for the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from tests.faults.conditions import GOOD, Conditions, How
from tests.faults.direction import PIECE_BYTES, Direction, Line

T = TypeVar("T")

_RESET = struct.pack("ii", 1, 0)
_BACKLOG = 1024
_KERNEL_BYTES = 16 << 10


class Counts(msgspec.Struct, frozen=True):
    """What went over the link since the proxy began.

    Attributes:
        up_bytes: delivered to the server.
        down_bytes: delivered to the client.
        connections: accepted.
        cuts: connections that were cut.
    """

    up_bytes: int
    down_bytes: int
    connections: int
    cuts: int


class LinkProxy:
    """A link to `upstream`, good until told otherwise; every method is for any thread.

    Args:
        upstream: host and port of the server behind the link.
        port: where to listen on 127.0.0.1; 0 takes a free one.
        conditions: what the link is like at first.
    """

    def __init__(
        self, upstream: tuple[str, int], *, port: int = 0, conditions: Conditions = GOOD
    ) -> None:
        self._upstream = upstream
        self._conditions = conditions
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._up = Direction(self._loop.time)
        self._down = Direction(self._loop.time)
        self._open: dict[_Connection, asyncio.Task[None]] = {}
        self._scripts: set[asyncio.Task[None]] = set()
        self._accepted = 0
        self._cuts = 0
        self._thread = threading.Thread(target=self._run, name="link-proxy", daemon=True)

    def __enter__(self) -> LinkProxy:
        self._thread.start()
        self.set(self._conditions)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def host(self) -> str:
        """`HOST:PORT` where clients find the link."""
        return f"127.0.0.1:{self.port}"

    def url(self, scheme: str = "http") -> str:
        """Address of the link as a base URL."""
        return f"{scheme}://{self.host}/"

    def counts(self) -> Counts:
        """What went over the link until now."""
        # Asked of the loop, where bytes and their count change in one step.
        return self._call(
            lambda: Counts(self._up.bytes, self._down.bytes, self._accepted, self._cuts)
        )

    def open_connections(self) -> int:
        """Connections that neither end has closed."""
        return len(self._open)

    def set(self, conditions: Conditions) -> None:
        """Change the weather; it holds for open connections too, when this returns."""
        self._call(lambda: self._set(conditions))

    def cut(self, how: How = "rst") -> int:
        """End every open connection on both sides; says how many there were."""
        return self._do(self._cut_all(how))

    def cut_at(self, down_bytes: Iterable[int], *, how: How = "rst") -> None:
        """Cut when so many bytes in all were delivered to clients; exact with one connection."""
        self._call(lambda: self._down.mark(down_bytes, lambda: self._cut(how)))

    def follow(self, script: Sequence[tuple[float, Conditions | How]]) -> None:
        """Play a script from now on: seconds from now, and what the link is then or how it is cut.

        Returns at once; what has not been played when the proxy closes never is.
        """
        self._do(self._begin(script))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        accepting.result()

    def _call(self, act: Callable[[], T]) -> T:
        async def called() -> T:
            return act()

        return self._do(called())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _set(self, conditions: Conditions) -> None:
        self._conditions = conditions
        for direction in (self._up, self._down):
            direction.set(conditions)

    def _cut(self, how: How) -> list[asyncio.Task[None]]:
        """Order every open connection to end, and return what carries them until they have."""
        cut = list(self._open.items())
        self._cuts += len(cut)
        for connection, task in cut:
            connection.end_with = how
            task.cancel()
        self._open.clear()
        return [task for _, task in cut]

    async def _cut_all(self, how: How) -> int:
        tasks = self._cut(how)
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(tasks)

    async def _begin(self, script: Sequence[tuple[float, Conditions | How]]) -> None:
        task = asyncio.ensure_future(self._play(script))
        self._scripts.add(task)
        task.add_done_callback(self._scripts.discard)

    async def _play(self, script: Sequence[tuple[float, Conditions | How]]) -> None:
        begun = self._loop.time()
        for at_s, what in sorted(script, key=lambda step: step[0]):
            await asyncio.sleep(begun + at_s - self._loop.time())
            if isinstance(what, Conditions):
                self._set(what)
            else:
                self._cut(what)

    async def _accept(self) -> None:
        self._listener.setblocking(False)
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                client, _ = await self._loop.sock_accept(self._listener)
                self._accepted += 1
                connection = _Connection(client)
                if self._conditions.refuses:
                    connection.end_with = "rst"
                    connection.close()
                    continue
                carrying = asyncio.ensure_future(self._carry(connection))
                self._open[connection] = carrying
                # Not at the end of `_carry`: one that is cut before it began never gets there.
                carrying.add_done_callback(partial(self._end, connection))

    def _end(self, connection: _Connection, _: asyncio.Task[None]) -> None:
        self._open.pop(connection, None)
        connection.close()

    async def _carry(self, connection: _Connection) -> None:
        """One connection from its first byte to its last."""
        try:
            if self._conditions.half_open:
                await connection.swallow()
            else:
                await self._join(connection)
        except OSError:
            # One end is gone: so is the other.
            connection.end_with = "rst"

    async def _join(self, connection: _Connection) -> None:
        client = connection.ends[0]
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.ends.append(_ready(server))
        await self._loop.sock_connect(server, self._upstream)
        ways = [
            asyncio.ensure_future(self._up.carry(client, server, connection)),
            asyncio.ensure_future(self._down.carry(server, client, connection)),
        ]
        try:
            for way in asyncio.as_completed(ways):
                await way
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _close(self) -> None:
        self._cut("rst")
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()


class _Connection(Line):
    """Both ends of one connection; the server's end is missing until it is there.

    Attributes:
        end_with: how both ends are told that it is over.
    """

    def __init__(self, client: socket.socket) -> None:
        self.ends = [_ready(client)]
        self.end_with: How = "fin"

    async def swallow(self) -> None:
        """Take whatever comes, and never answer."""
        loop = asyncio.get_running_loop()
        while await loop.sock_recv(self.ends[0], PIECE_BYTES):
            pass

    def close(self) -> None:
        """Let go of both ends; nothing may be reading from them any more."""
        for end in self.ends:
            if self.end_with == "rst":
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()


def _ready(end: socket.socket) -> socket.socket:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What lies in the kernel counts as delivered and may be cut off: it must be little.
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
    return end
