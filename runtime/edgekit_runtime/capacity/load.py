"""Load: one process that sends requests when they are due and notes when they were answered.

Due times are fixed before the first request is sent. A request that finds every connection taken
waits, and its latency counts from when it was due. The generator tells how late it was itself where
a connection was free, and what share of its time it worked: a figure that it spoilt is void.

The process reads one task after another as lines of JSON and answers each in msgpack after its
length; it ends where its input does. `Generators` drives several of them.
"""

from __future__ import annotations

import ctypes
import select
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_runtime.capacity.wire import Connection

LENGTH_BYTES = 8
# Linux lets a sleep end this much late by default, to save power; and what remains is spun away.
_TIMER_SLACK_NS = 1
_PR_SET_TIMERSLACK = 29
_SPIN_NS = 50_000
_SEND, _RECEIVE = select.EPOLLOUT, select.EPOLLIN


class Task(Strict, frozen=True, kw_only=True):
    """What one process is to send.

    Attributes:
        address: `http://HOST:PORT` or `unix:PATH`.
        messages: files, each holding one request; sent in turn.
        due: a file of int64 nanoseconds from the start, rising; None keeps every connection busy
            for `duration_s` instead.
        patience_s: how long to wait for answers after the last request was due.
    """

    address: str
    messages: tuple[str, ...]
    connections: int
    duration_s: float
    due: str | None = None
    patience_s: float = 1.0


class Sent(Strict, frozen=True, kw_only=True):
    """What became of a task.

    Attributes:
        latencies_ns: int64 in bytes: of requests answered with 200, in the order of answers, from
            when each was due (closed loop: sent) to its last byte received.
        late_ns: int64 in bytes: how much later a request was sent than it could be, being due and
            a connection being free.
        statuses: answers with another status, by status; 0: the connection closed instead.
        unanswered: requests that were due and have no answer.
        starved: requests that found no free connection when they were due.
        wall_s: from the first to the last request's answer.
        busy_share: of that time the generator was working.
    """

    latencies_ns: bytes
    late_ns: bytes
    statuses: dict[int, int]
    unanswered: int
    starved: int
    wall_s: float
    busy_share: float


def main() -> None:
    """Serve tasks until the input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)
    out = sys.stdout.buffer
    try:
        for line in sys.stdin.buffer:
            task = msgspec.json.decode(line, type=Task)
            reply = msgspec.msgpack.encode(run(task))
            out.write(len(reply).to_bytes(LENGTH_BYTES, "little") + reply)
            out.flush()
    except KeyboardInterrupt:
        # Whoever started this process was told as well, and says so.
        sys.exit(130)


def run(task: Task) -> Sent:
    """Send what a task says, raising `ServingError` where nobody listens at its address."""
    messages = [Path(name).read_bytes() for name in task.messages]
    due = None if task.due is None else np.fromfile(task.due, dtype=np.int64)
    connections = [Connection(task.address) for _ in range(task.connections)]
    try:
        driver = _Driver(connections, messages)
        if due is None:
            return driver.closed(task.duration_s, patience_s=task.patience_s)
        return driver.open(due, patience_s=task.patience_s)
    finally:
        for connection in connections:
            connection.close()


class _Driver:
    """The loop over all connections."""

    def __init__(self, connections: Sequence[Connection], messages: Sequence[bytes]) -> None:
        self._messages = messages
        self._free = deque(connections)
        self._epoll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        for connection in connections:
            self._watch(connection)
        self._latencies: list[int] = []
        self._late: list[int] = []
        self._statuses: dict[int, int] = {}
        self._starved = 0
        self._sent = 0
        self._answered = 0
        self._idle_ns = 0
        # When a connection was last free again after none was.
        self._freed_ns = 0

    def open(self, due: NDArray[np.int64], *, patience_s: float) -> Sent:
        """Send each request when it is due."""
        start = time.perf_counter_ns() + 1_000_000
        times = (due + start).tolist()
        end = (times[-1] if times else start) + round(patience_s * 1e9)
        place, count = 0, len(times)
        now = time.perf_counter_ns()
        while (place < count or self._answered < self._sent) and now < end:
            while self._free and place < count and times[place] <= now:
                self._starved += times[place] < self._freed_ns
                self._late.append(now - max(times[place], self._freed_ns))
                self._send(times[place])
                place += 1
                now = time.perf_counter_ns()
            waits = place < count and bool(self._free)
            self._turn(min(times[place], end) if waits else end)
            now = time.perf_counter_ns()
        return self._told(now - start, unanswered=count - self._answered)

    def closed(self, duration_s: float, *, patience_s: float) -> Sent:
        """Keep every connection busy."""
        start = now = time.perf_counter_ns()
        stop = start + round(duration_s * 1e9)
        end = stop + round(patience_s * 1e9)
        while (now < stop or self._answered < self._sent) and now < end:
            while self._free and now < stop:
                now = time.perf_counter_ns()
                self._send(now)
            self._turn(stop if now < stop else end)
            now = time.perf_counter_ns()
        return self._told(now - start, unanswered=self._sent - self._answered)

    def _send(self, due_ns: int) -> None:
        connection = self._free.popleft()
        connection.due_ns = due_ns
        message = self._messages[self._sent % len(self._messages)]
        self._sent += 1
        if not connection.send(message):
            self._epoll.modify(connection, _SEND | _RECEIVE)

    def _turn(self, until_ns: int) -> None:
        """Take what was answered, waiting for it until `until_ns`."""
        events = self._epoll.poll(0)
        if not events:
            before = time.perf_counter_ns()
            events = self._wait(until_ns)
            self._idle_ns += time.perf_counter_ns() - before
        for fd, event in events:
            connection = self._by_fd[fd]
            if event & _SEND and connection.send_rest():
                self._epoll.modify(connection, _RECEIVE)
            if event & ~_SEND and connection.receive():
                self._answer(connection, fd)

    def _wait(self, until_ns: int) -> list[tuple[int, int]]:
        left = until_ns - time.perf_counter_ns()
        if left > _SPIN_NS:
            # An epoll's own time limit counts milliseconds; select's on it counts microseconds.
            select.select([self._epoll], [], [], (left - _SPIN_NS) / 1e9)
        events = self._epoll.poll(0)
        while not events and time.perf_counter_ns() < until_ns:
            events = self._epoll.poll(0)
        return events

    def _answer(self, connection: Connection, fd: int) -> None:
        now = time.perf_counter_ns()
        if connection.status == 200:
            self._latencies.append(now - connection.due_ns)
        else:
            self._statuses[connection.status] = self._statuses.get(connection.status, 0) + 1
        if connection.status == 0:
            del self._by_fd[fd]
            connection.reopen()
            self._watch(connection)
        self._answered += 1
        if not self._free:
            self._freed_ns = now
        self._free.append(connection)

    def _watch(self, connection: Connection) -> None:
        self._by_fd[connection.fileno()] = connection
        self._epoll.register(connection, _RECEIVE)

    def _told(self, wall_ns: int, *, unanswered: int) -> Sent:
        self._epoll.close()
        return Sent(
            latencies_ns=np.array(self._latencies, dtype=np.int64).tobytes(),
            late_ns=np.array(self._late, dtype=np.int64).tobytes(),
            statuses=self._statuses,
            unanswered=unanswered,
            starved=self._starved,
            wall_s=wall_ns / 1e9,
            busy_share=1 - min(1.0, self._idle_ns / max(1, wall_ns)),
        )


if __name__ == "__main__":
    main()
