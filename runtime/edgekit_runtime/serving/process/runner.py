"""ProcessRunner: runs batches in a child process, driven by the event loop; no thread waits.

One batch is under way at a time. Whatever becomes of the child, each job of it has its answer: the
outputs, the engine's error, or a `WorkerLost` that says what happened. A lost runner has killed its
child, waits for its end, and needs no `close`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence

from edgekit.errors import EngineError, Overloaded, WorkerLost
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.plan import Place
from edgekit_runtime.serving.process.calls import Calls
from edgekit_runtime.serving.process.memory import give_back
from edgekit_runtime.serving.process.messages import Answer
from edgekit_runtime.serving.process.session import ProcessSession
from edgekit_runtime.serving.process.staging import SMALL_BYTES
from edgekit_runtime.serving.process.worker import END_S, LOOK_S, hung
from edgekit_runtime.serving.runners import Batch, Done, split_rows
from edgekit_runtime.serving.stats import Stages, Stats

Results = list[Outputs | Exception]
Steps = Generator[bytes, Answer | None, Results]
_IDLE_S = 5.0


class ProcessRunner:
    """Runs the batches of a session that was opened in a process.

    Args:
        session: becomes the runner's.
        stats: where runs are counted.
        run_s: how long a run may take, instead of the session's limit.
        on_lost: told on the loop of a child that is lost while no batch is under way; with one, the
            batch says so.

    Attributes:
        is_lost: whether the child died, hung or grew too large.
    """

    place: Place = "process"

    def __init__(
        self,
        session: ProcessSession,
        *,
        stats: Stats,
        run_s: float | None = None,
        on_lost: Callable[[WorkerLost], None] | None = None,
    ) -> None:
        self._session = session
        self._worker = session.worker
        self._arena = session.worker.arena
        self._stats = stats
        self._run_s = run_s or session.worker.limits.run_s
        self._on_lost = on_lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flight: _Flight | None = None
        self._sent_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._lost_how: str | None = None
        self._is_closing = False
        # Loading tries batches that may never come.
        self._rest()
        give_back()

    @property
    def is_lost(self) -> bool:
        return self._lost_how is not None

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._worker.pid

    @property
    def memory_bytes(self) -> int | None:
        return self._session.memory_bytes

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Learn the loop, on it; else the first `start` does. From here on a death is noticed."""
        if self._loop is None:
            self._loop = loop
            self._worker.doorbell.setblocking(False)
            loop.add_reader(self._worker.doorbell.fileno(), self._ring)
            loop.add_reader(self._worker.ended, self._ended)

    def start(self, jobs: Sequence[Job], done: Done) -> None:
        assert self._flight is None
        loop = asyncio.get_running_loop()
        self._flight = _Flight(jobs, done, _together(self._session.calls, jobs, self._stats))
        if self._lost_how is not None or self._is_closing:
            loop.call_soon(self._fail, self._lost_how or "is closed")
            return
        self.attach(loop)
        # What fails before the child is asked is told when whoever called us is done.
        self._go_on(None, land=lambda: loop.call_soon(self._land))

    def allocate(self, size_bytes: int) -> memoryview | None:
        # Half of the arena is kept for inputs brought together and for outputs.
        arena = self._arena
        left = arena.free_bytes - size_bytes
        if size_bytes <= SMALL_BYTES or left < arena.size_bytes // 2:
            return None
        block = arena.take(size_bytes)
        return None if block is None else block.data

    def close(self) -> None:
        if self._is_closing or self.is_lost:
            return
        self._is_closing = True
        loop = self._loop
        if loop is not None and loop.is_running():
            if self._flight is None:
                self._hang_up(loop)
            return
        # The loop is gone or never was: nobody else would see the child's end.
        if loop is not None and not loop.is_closed():
            self._detach(loop)
        self._worker.end()
        self._session.calls.close()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        return self._worker.wait(timeout_s)

    # What the event loop calls.

    def _ring(self) -> None:
        """The child answers, or has closed the doorbell: then its end is on the way."""
        try:
            answer = self._worker.heard()
        except BlockingIOError:
            return
        if answer is None:
            assert self._loop is not None
            self._loop.remove_reader(self._worker.doorbell.fileno())
        elif self._flight is not None:
            if wrong := self._worker.excess():
                self._lose(wrong)
            else:
                self._go_on(answer, land=self._land)

    def _ended(self) -> None:
        """The child has ended: as it was asked to, or as nobody expected."""
        assert self._loop is not None
        if self._flight is not None:
            self._ring()  # its last answer may have come in the same turn of the loop
        how = self._worker.how_it_ended()
        if how is None:  # another thread that waits for it is about to know: ask again
            return
        self._detach(self._loop)
        self._worker.release()
        self._session.calls.close()
        if not self._is_closing or self._flight is not None:
            self._note_loss(how)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Now and then while there is work: does the child take too long, or too much?"""
        self._watch = None
        now = loop.time()
        if self._flight is not None:
            wrong = self._worker.excess()
            if wrong is None and now - self._sent_at > self._run_s:
                wrong = hung(self._run_s)
            if wrong is not None:
                self._lose(wrong)
                return
        elif now - self._sent_at > _IDLE_S:
            self._rest()
            return
        self._look_later(loop)

    # Its life.

    def _go_on(self, answer: Answer | None, *, land: Callable[[], object]) -> None:
        """Take the next step of the batch under way; `land` is called where it was the last."""
        flight, loop = self._flight, self._loop
        assert flight is not None
        assert loop is not None
        try:
            packet = flight.steps.send(answer)
        except StopIteration as stop:
            flight.results = stop.value
            land()
            return
        self._sent_at = loop.time()
        if self._watch is None:
            self._look_later(loop)
        try:
            self._worker.say(packet)
        except OSError:
            # The child is gone, or on its way out; `_ended` tells how.
            self._worker.kill()

    def _land(self) -> None:
        """Hand over what came of a batch, unless the child was lost in the meantime."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        flight.done(Batch(flight.jobs, flight.results, flight.taken_ns))
        if self._is_closing and self._flight is None:
            assert self._loop is not None
            self._hang_up(self._loop)

    def _lose(self, how: str) -> None:
        """End a child that breaks its limits; `_ended` sees to the rest."""
        self._worker.kill()
        self._note_loss(how)

    def _note_loss(self, how: str) -> None:
        if self._lost_how is not None:
            return
        self._lost_how = how
        if self._flight is not None:
            self._fail(how)
        elif self._on_lost is not None:
            self._on_lost(self._worker.lost(how))

    def _fail(self, how: str) -> None:
        """Tell each job of the batch under way how its worker was lost."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.steps.close()
            error = self._worker.lost(how)
            flight.done(Batch(flight.jobs, [error] * len(flight.jobs), flight.taken_ns))

    def _hang_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the child end, and see that it does."""
        self._worker.hang_up()
        if self._watch is not None:
            self._watch.cancel()
        self._watch = loop.call_later(END_S, self._worker.kill)

    def _rest(self) -> None:
        """Give memory back that only runs need."""
        self._arena.trim()
        self._worker.rest()

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = loop.call_later(min(LOOK_S, self._run_s / 2), self._look, loop)

    def _detach(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._worker.doorbell.fileno())
        loop.remove_reader(self._worker.ended)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


class _Flight:
    """A batch under way."""

    __slots__ = ("done", "jobs", "results", "steps", "taken_ns")

    def __init__(self, jobs: Sequence[Job], done: Done, steps: Steps) -> None:
        self.jobs = jobs
        self.done = done
        self.steps = steps
        self.results: Results = []
        self.taken_ns = time.perf_counter_ns()


def _together(calls: Calls, jobs: Sequence[Job], stats: Stats) -> Steps:
    """Run jobs together; should that fail, one by one, so that none fails for its neighbour."""
    try:
        result = yield from calls.run([job.inputs for job in jobs])
        ran = time.perf_counter_ns()
        results: Results = [result.outputs]
        if len(jobs) > 1:
            results = [*split_rows(jobs, result.outputs)]
    except (EngineError, Overloaded) as e:
        if len(jobs) == 1:
            return [e]
        results = []
        for job in jobs:
            results += yield from _together(calls, [job], stats)
        return results
    except Exception as e:  # noqa: BLE001 - handed to the requests, which log it with their ids
        return [e] * len(jobs)
    stages = Stages(result.stack_ns, result.run_ns, time.perf_counter_ns() - ran)
    stats.batch(sum(job.rows for job in jobs) or 1, stages)
    return results
