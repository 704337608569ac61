"""Direction: one way over a link; all connections share its rate and its weather."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable

from edgekit_runtime.fetch.pace import Bucket
from tests.faults.conditions import GOOD, Conditions

PIECE_BYTES = 1 << 16
# Held on the way where no rate is set; a link with a rate holds a tenth of a second of it.
HELD_BYTES = 4 << 20
_HELD_S = 0.1
_SLICE_S = 0.02


class Line:
    """What both directions of one connection know of it.

    Attributes:
        is_lost: bytes were swallowed, so that nothing can follow them any more.
    """

    is_lost = False


class Direction:
    """Carries bytes one way, and counts what arrived.

    Args:
        now_s: the clock of the loop that carries.

    Attributes:
        bytes: handed to receiving ends.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.bytes = 0
        self._now_s = now_s
        self._conditions = GOOD
        self._bucket: Bucket | None = None
        self._moving = asyncio.Event()
        self._moving.set()
        self._marks: deque[int] = deque()
        self._reached: Callable[[], object] = int

    def set(self, conditions: Conditions) -> None:
        """Change the weather."""
        rate = conditions.bytes_s
        if rate != self._conditions.bytes_s:
            self._bucket = _bucket(rate, now_s=self._now_s())
        self._conditions = conditions
        if conditions.stalled:
            self._moving.clear()
        else:
            self._moving.set()

    def mark(self, totals: Iterable[int], reached: Callable[[], object]) -> None:
        """Call `reached` each time that exactly so many bytes have arrived."""
        self._marks = deque(sorted(total for total in totals if total > self.bytes))
        self._reached = reached

    async def carry(self, source: socket.socket, sink: socket.socket, line: Line) -> None:
        """Carry everything from one end to the other, its end too."""
        held = _Held()
        taking = asyncio.ensure_future(self._take(source, held, line))
        try:
            while (piece := await held.get()) is not None:
                due_s, data = piece
                await asyncio.sleep(max(0.0, due_s - self._now_s()))
                await self._give(sink, data, line)
            if line.is_lost:
                # Nobody at the other end of a dead line hears that this one hung up.
                await asyncio.Event().wait()
            await taking
            sink.shutdown(socket.SHUT_WR)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _take(self, source: socket.socket, held: _Held, line: Line) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, PIECE_BYTES):
                if self._conditions.half_open:
                    line.is_lost = True
                if not line.is_lost:
                    await held.put(
                        (self._now_s() + self._conditions.latency_s, data), self._limit_bytes()
                    )
        finally:
            line.is_lost = line.is_lost or self._conditions.half_open
            held.end()

    async def _give(self, sink: socket.socket, data: bytes, line: Line) -> None:
        loop = asyncio.get_running_loop()
        rest = memoryview(data)
        while rest:
            await self._moving.wait()
            piece = rest[: self._slice_bytes()]
            if self._bucket is not None:
                await asyncio.sleep(self._bucket.take(len(piece), now_s=self._now_s()))
                await self._moving.wait()
            if line.is_lost or self._conditions.half_open:
                line.is_lost = True
                return
            await loop.sock_sendall(sink, piece)
            self.bytes += len(piece)
            rest = rest[len(piece) :]
            if self._marks and self.bytes >= self._marks[0]:
                self._marks.popleft()
                self._reached()
                # Here a cut takes hold, before another byte goes over.
                await asyncio.sleep(0)

    def _slice_bytes(self) -> int:
        rate = self._conditions.bytes_s
        size = PIECE_BYTES if rate is None else max(256, int(rate * _SLICE_S))
        return min(size, self._marks[0] - self.bytes) if self._marks else size

    def _limit_bytes(self) -> int:
        rate = self._conditions.bytes_s
        return HELD_BYTES if rate is None else int(rate * (_HELD_S + self._conditions.latency_s))


def _bucket(rate: float | None, *, now_s: float) -> Bucket | None:
    return None if rate is None else Bucket(rate, burst_bytes=rate * _SLICE_S, now_s=now_s)


class _Held:
    """Pieces on their way, each with the time when it may arrive."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size_bytes = 0
        self._is_ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, piece: tuple[float, bytes], limit_bytes: int) -> None:
        self._pieces.append(piece)
        self._size_bytes += len(piece[1])
        self._news.set()
        while self._size_bytes > limit_bytes:
            self._room.clear()
            await self._room.wait()

    async def get(self) -> tuple[float, bytes] | None:
        """The next piece; `None` where none will come any more."""
        while not self._pieces and not self._is_ended:
            self._news.clear()
            await self._news.wait()
        if not self._pieces:
            return None
        piece = self._pieces.popleft()
        self._size_bytes -= len(piece[1])
        self._room.set()
        return piece

    def end(self) -> None:
        self._is_ended = True
        self._news.set()
