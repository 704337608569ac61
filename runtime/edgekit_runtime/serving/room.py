"""Room: what all clients of a server take together, and who leaves when it is full.

A client that works is never sent away for one that comes. A new connection takes the place of one
that only waits: of those that never asked anything the oldest, else of the one that has waited
longest. Where all are busy, or came within the last second, the new one is told to come later.
Bytes are bounded over all clients, however many of them send large bodies or leave answers lying.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgekit_runtime.serving.application import Limits

MIN_IDLE_S = 1.0
# Connections that are looked at in one turn of the loop: some 50 microseconds.
_SLICE = 64


class Guest(Protocol):
    """A connection, or one that is about to be."""

    has_asked: bool
    since: float

    @property
    def is_idle(self) -> bool:
        """Whether it only waits."""
        ...

    def check(self, now: float) -> None:
        """End it where its client is too slow."""
        ...

    def close(self) -> None:
        """End it when it has answered."""
        ...

    def abort(self) -> None:
        """End it now."""
        ...


class Room:
    """The connections of a server and the bytes that they hold. Used on the event loop.

    Args:
        limits: the bounds.
        connections: most that may be open; at most `limits.connections`.
        now: the loop's time, seconds.

    Attributes:
        connections: those that are open.
        held_bytes: of bodies that were announced and are not answered, and of answers that their
            clients do not take.
        made_way: connections that were closed for a new one.
        turned_away: connections that found no place.
    """

    def __init__(self, limits: Limits, *, connections: int, now: Callable[[], float]) -> None:
        self.connections: set[Guest] = set()
        self.held_bytes = 0
        self.made_way = 0
        self.turned_away = 0
        self._limit = connections
        self._bytes = limits.total_bytes
        self._now = now
        self._waiting: deque[Guest] = deque()
        self._sweep: deque[Guest] = deque()
        self._expected: dict[Guest, Guest] = {}

    @property
    def is_full(self) -> bool:
        """Whether clients hold more bytes than they may together."""
        return self.held_bytes > self._bytes

    def enter(self, connection: Guest) -> bool:
        """Note a new connection; whether it may stay."""
        if (before := self._expected.pop(connection, None)) is not None:
            self.connections.discard(before)
        is_crowded = len(self.connections) >= self._limit
        self.connections.add(connection)
        if not is_crowded or self._make_way():
            return True
        self.turned_away += 1
        return False

    def expect(self, connection: Guest, *, instead_of: Guest) -> None:
        """When this connection enters, it has the place of that one."""
        self._expected[connection] = instead_of

    def forget(self, connection: Guest) -> None:
        """A connection is expected no more."""
        self._expected.pop(connection, None)

    def leave(self, connection: Guest) -> None:
        """A connection ended."""
        self.connections.discard(connection)

    def reserve(self, size_bytes: int) -> bool:
        """Take room for a body; whether there is. A body that comes alone always finds it."""
        if self.held_bytes and self.held_bytes + size_bytes > self._bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def hold(self, size_bytes: int) -> None:
        """Note bytes that are here already."""
        self.held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give back what `reserve` or `hold` took."""
        self.held_bytes -= size_bytes

    def check_some(self) -> bool:
        """Look for clients that are too slow, at some connections; whether there are more.

        So that thousands of connections do not hold up the loop in one go.
        """
        if not self._sweep:
            self._sweep.extend(self.connections)
        now = self._now()
        for _ in range(min(_SLICE, len(self._sweep))):
            self._sweep.popleft().check(now)
        if self._sweep:
            return True
        # Sorting is only worth its time where someone may soon have to leave.
        is_near = 4 * len(self.connections) >= 3 * self._limit
        self._waiting = deque(leave_first(self.connections, now=now) if is_near else ())
        return False

    def _make_way(self) -> bool:
        """Close a connection that only waits; whether one was found."""
        while self._waiting:
            first = self._waiting.popleft()
            if first in self.connections and is_dispensable(first, now=self._now()):
                first.close()
                self.made_way += 1
                return True
        return False


def is_dispensable(connection: Guest, *, now: float) -> bool:
    """Whether a connection has waited long enough to make way for a new one."""
    return connection.is_idle and now - connection.since >= MIN_IDLE_S


def leave_first(connections: Iterable[Guest], *, now: float) -> list[Guest]:
    """Connections that may be closed for new ones, in the order in which they are."""
    found = [one for one in connections if is_dispensable(one, now=now)]
    return sorted(found, key=lambda one: (one.has_asked, one.since))
