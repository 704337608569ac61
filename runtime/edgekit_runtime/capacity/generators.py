"""Generators: load processes, driven together, and what all of them saw as one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ServingError
from edgekit_runtime.capacity.load import LENGTH_BYTES, Sent, Task

# Chosen so that a full queue of a server is met before the generator runs out of connections.
CONNECTIONS = 128


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What all generators saw in one run.

    Attributes:
        latencies_ns: int64, of requests answered with 200.
        late_ns: int64, by how much requests were sent later than they could be.
        statuses: of other answers, 0 for a connection that closed instead.
        failed: requests without an answer of 200.
        starved: requests that found no free connection when they were due.
        wall_s: of the longest generator.
        busy_share: of the busiest generator's time.
        sent_bytes: of all requests.
    """

    latencies_ns: NDArray[np.int64]
    late_ns: NDArray[np.int64]
    statuses: dict[int, int]
    failed: int
    starved: int
    wall_s: float
    busy_share: float
    sent_bytes: int

    @property
    def requests(self) -> int:
        return len(self.latencies_ns) + self.failed

    @property
    def answered_per_s(self) -> float:
        return len(self.latencies_ns) / self.wall_s


class Generators:
    """`count` load processes; they end with the block.

    Args:
        address: `http://HOST:PORT` or `unix:PATH`.
        count: processes; arrivals are dealt out to them in turn.
        connections: of all of them together.
    """

    def __init__(self, address: str, *, count: int = 1, connections: int = CONNECTIONS) -> None:
        self._address = address
        self._count = count
        self._connections = connections
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._written = 0

    def __enter__(self) -> Generators:
        with self._stack:
            name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-load-"))
            self._folder = Path(name)
            command = [sys.executable, "-m", "edgekit_runtime.capacity.load"]
            for _ in range(self._count):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._stack.enter_context(process)
                self._stack.callback(process.kill)
                self._processes.append(process)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def messages(self, requests: Sequence[bytes]) -> tuple[str, ...]:
        """Requests as files, which tasks name."""
        names = []
        for raw in requests:
            self._written += 1
            path = self._folder / f"{self._written}.http"
            path.write_bytes(raw)
            names.append(str(path))
        return tuple(names)

    def open_loop(
        self, messages: tuple[str, ...], due_ns: NDArray[np.int64], *, patience_s: float
    ) -> Load:
        """Send a request at each of these times from the start, whatever becomes of the others.

        Args:
            messages: of `messages`, sent in turn.
            due_ns: rising.
            patience_s: how long to wait for the last answers.
        """
        tasks = []
        for place in range(self._count):
            path = self._folder / f"due-{place}"
            due_ns[place :: self._count].tofile(path)
            tasks.append(self._task(messages, due=str(path), patience_s=patience_s))
        return self._run(tasks)

    def closed_loop(
        self, messages: tuple[str, ...], *, connections: int, duration_s: float
    ) -> Load:
        """Keep connections busy, each sending the next request when it has its answer.

        This finds what a server can take; its latencies say nothing about callers who do not wait.
        """
        count = min(self._count, connections)
        task = self._task(messages, duration_s=duration_s, connections=connections // count)
        return self._run([task] * count)

    def _task(
        self,
        messages: tuple[str, ...],
        *,
        due: str | None = None,
        duration_s: float = 0.0,
        connections: int | None = None,
        patience_s: float = 5.0,
    ) -> Task:
        return Task(
            address=self._address,
            messages=messages,
            connections=connections or max(1, self._connections // self._count),
            duration_s=duration_s,
            due=due,
            patience_s=patience_s,
        )

    def _run(self, tasks: Sequence[Task]) -> Load:
        running = self._processes[: len(tasks)]
        for process, task in zip(running, tasks, strict=True):
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            process.stdin.flush()
        sent = [_reply(process) for process in running]
        sizes = [Path(name).stat().st_size for name in tasks[0].messages]
        failed = sum(sum(one.statuses.values()) + one.unanswered for one in sent)
        latencies = _joined([one.latencies_ns for one in sent])
        return Load(
            latencies_ns=latencies,
            late_ns=_joined([one.late_ns for one in sent]),
            statuses=_summed([one.statuses for one in sent]),
            failed=failed,
            starved=sum(one.starved for one in sent),
            wall_s=max(one.wall_s for one in sent),
            busy_share=max(one.busy_share for one in sent),
            sent_bytes=round((len(latencies) + failed) * sum(sizes) / len(sizes)),
        )


def _reply(process: subprocess.Popen[bytes]) -> Sent:
    assert process.stdout is not None
    length = process.stdout.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        raise ServingError(
            f"a load generator ended with code {process.wait()}",
            hint="what it says stands above; is the server still there?",
        )
    raw = process.stdout.read(int.from_bytes(length, "little"))
    return msgspec.msgpack.decode(raw, type=Sent)


def _joined(parts: Sequence[bytes]) -> NDArray[np.int64]:
    return np.frombuffer(b"".join(parts), dtype=np.int64)


def _summed(parts: Sequence[dict[int, int]]) -> dict[int, int]:
    return {
        status: sum(part.get(status, 0) for part in parts)
        for status in sorted({status for part in parts for status in part})
    }
