"""Ring: one request of a program that shares memory, and the slot its tensors lie in.

The engine reads and writes the slot itself where it can (`engines.Binds`). A run that outlives its
answer would write into memory that the program uses for its next request, so a request with a
deadline, or one that a second variant may be asked for, is run on the engine's own outputs, which
are copied when it is answered.

To make a job of a request, to queue it and to hand it out takes longer than a run of microseconds,
so a request that finds nothing before it goes past the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, RequestError, Unavailable
from edgekit_runtime.doorbell import ANSWER, Layout
from edgekit_runtime.engines import Binds, Session, Tensors
from edgekit_runtime.serving.job import LOWEST_PRIORITY, Job, Outputs
from edgekit_runtime.serving.mapping import is_left_in_place
from edgekit_runtime.serving.runners import LoopRunner
from edgekit_runtime.serving.stats import Stages

if TYPE_CHECKING:
    from edgekit_runtime.drift import Drift
    from edgekit_runtime.serving.rung import Rung
    from edgekit_runtime.serving.served import Served

# With less time than this, a request is left to the scheduler, which may refuse it.
LEAST_TIMEOUT_US = 1000
# How a model's pace is followed where requests come faster than this.
LEARN_EACH_NS = 1_000_000


class Reply(Protocol):
    """Takes answers to a program, and hears of the version that gives them."""

    def adopt(self, served: Served) -> None:
        """Let this version answer, raising `Changed` where its tensors lie elsewhere."""

    def send(self, packet: bytes) -> None: ...

    def fail(self, slot: int, error: Exception) -> None: ...


class Ring(Job):
    """A job that answers a program. What it asks can change at any time, so nothing is kept."""

    __slots__ = ("served", "slot")

    may_keep = False

    def __init__(self, slot: Slot, inputs: Outputs, served: Served, **options: Any) -> None:
        Job.__init__(self, inputs, rows=slot.rows, key=slot.key, cascade=served.cascade, **options)
        self.slot = slot
        self.served = served

    def run(self, session: Session) -> Outputs:
        slot = self.slot
        is_final = self.deadline_ns is None and self.cascade is None
        if not is_final or self.inputs is not slot.inputs:
            return session.run(self.inputs)
        return slot.run(session)

    def moved(self, served: Served) -> None:
        self.slot.reply.adopt(served)
        self.served = served

    def done(self, outcome: Outputs | Exception, rung: Rung | None) -> None:
        self.slot.done(self, outcome, rung)


class Slot:
    """Tensors for one request at a time.

    Args:
        number: of it, in its layout.
        layout: where tensors lie.
        memory: mapped; it stays so while an array of it is in use.
        variant: pinned by the program.
        reply: takes the answers.

    Attributes:
        inputs: in shared memory.
        outputs: in shared memory.
        rows: samples on axis 0 of every input, 0 where they differ.
        key: as a request over HTTP has it, so that they run together.
    """

    def __init__(
        self, number: int, layout: Layout, memory: Any, *, variant: str | None, reply: Reply
    ) -> None:
        start = number * layout.slot_bytes
        self.inputs: Outputs = {place.name: place.view(memory, start) for place in layout.inputs}
        self.outputs: Outputs = {place.name: place.view(memory, start) for place in layout.outputs}
        shapes = {name: array.shape for name, array in self.inputs.items()}
        rows = {shape[0] if shape else 0 for shape in shapes.values()}
        self.rows = rows.pop() if len(rows) == 1 else 0
        self.key = tuple(sorted((name, shape[1:]) for name, shape in shapes.items()))
        self._number = number
        self._variant = variant
        self.reply = reply
        self._copied = [p.name for p in layout.inputs if not is_left_in_place(p)]
        self._may_bind = all(map(is_left_in_place, (*layout.inputs, *layout.outputs)))
        self._is_plain = variant is None and not self._copied
        self._job: Ring | None = None
        self._priority = 0
        self._timeout_us = 0
        self._session: Session | None = None
        self._bound: Callable[[], None] | None = None
        self._learn_at_ns = 0
        # Set while the engine may write into the slot, by whichever thread runs it.
        self._is_written = False
        self._is_lost = False

    @property
    def is_idle(self) -> bool:
        """Whether it waits for no answer."""
        return self._job is None

    def ask(self, priority: int, timeout_us: int) -> None:
        """A request was rung for; `make` makes it. Raises `RequestError` or `Unavailable`."""
        if self._job is not None:
            raise RequestError(
                f"slot {self._number} waits for its answer already", hint="open more slots"
            )
        if self._is_lost:
            raise Unavailable(
                f"the engine hung with slot {self._number}, and may still write into it",
                retry_after_s=0,
                hint="open the model again",
            )
        if priority > LOWEST_PRIORITY:
            raise RequestError(f"priority must be 1, the highest, to {LOWEST_PRIORITY}, or 0")
        self._priority = priority
        self._timeout_us = timeout_us

    def make(self, served: Served) -> Ring:
        """The request, to be run by `served`."""
        inputs = self.inputs
        if self._copied:
            inputs = {**inputs, **{name: inputs[name].copy() for name in self._copied}}
        deadline_ns = None
        if self._timeout_us:
            deadline_ns = time.perf_counter_ns() + self._timeout_us * 1000
        self._job = job = Ring(
            self,
            inputs,
            served,
            deadline_ns=deadline_ns,
            priority=self._priority,
            variant=self._variant,
        )
        return job

    def run_at_once(self, served: Served) -> bool:
        """Run and answer what was rung for, if nothing is before it; whether that is under way.

        What fails on the loop is left to `make`, whose run is told of.
        """
        timeout_us = self._timeout_us
        if not self._is_plain or served.cascade is not None or 0 < timeout_us < LEAST_TIMEOUT_US:
            return False
        rung = served.scheduler.at_once(is_timed=timeout_us > 0)
        if rung is None:
            return False
        runner = rung.opened.runner
        if not isinstance(runner, LoopRunner):
            if timeout_us:
                return False
            served.scheduler.run_now(self.make(served), rung)
            return True
        start_ns = time.perf_counter_ns()
        try:
            outputs = self.run(runner.session)
        except EngineError:
            return False
        done_ns = time.perf_counter_ns()
        run_ns = done_ns - start_ns
        rows = self.rows or 1
        stats = rung.stats
        stats.batch(rows, Stages(0, run_ns, 0))
        stats.answered(
            (start_ns,), taken_ns=start_ns, done_ns=done_ns, now_ms=time.time_ns() // 1_000_000
        )
        if start_ns > self._learn_at_ns:
            rung.learn(rows=rows, took_us=run_ns / 1000)
            self._learn_at_ns = start_ns + LEARN_EACH_NS
        if served.drift is not None:
            self._watch(served.drift, rung, self.inputs, outputs, run_ns=run_ns)
        if served.shadow is not None:
            served.shadow.offer(self.inputs, self.rows)
        self._answer(served, rung, outputs)
        return True

    def withdraw(self) -> None:
        """The request was not taken."""
        self._job = None

    def drop(self) -> None:
        """The program is gone: nobody wants the answer."""
        # Each holds the other: let go, so that the memory is unmapped now.
        job, self._job = self._job, None
        if job is not None and not job.settled:
            job.served.stats.cancelled()
            job.abandon()
        self.unbind()

    def run(self, session: Session) -> Outputs:
        """Run the inputs, straight into the outputs where the engine can."""
        if session is not self._session:
            self._bound = self._bind(session) if self._may_bind else None
            self._session = session
        # The loop may unbind meanwhile, for another version.
        bound = self._bound
        if bound is None:
            return session.run(self.inputs)
        self._is_written = True
        try:
            bound()
        except EngineError:
            # An output may have another shape than its place; then this run is right.
            outputs = session.run(self.inputs)
            self._bound = None
            return outputs
        finally:
            self._is_written = False
        return self.outputs

    def _bind(self, session: Session) -> Callable[[], None] | None:
        if not isinstance(session, Binds):
            return None
        try:
            return session.bind(self.inputs, self.outputs)
        except EngineError:
            # Without it the engine's own outputs are copied; what is wrong is said by a run.
            return None

    def unbind(self) -> None:
        """Another version runs the next requests."""
        self._session = self._bound = None

    def done(self, job: Ring, outcome: Outputs | Exception, rung: Rung | None) -> None:
        """Answer the program."""
        self._job = None
        if isinstance(outcome, Exception):
            self._is_lost = self._is_written
            self.reply.fail(self._number, outcome)
        else:
            assert rung is not None
            drift = job.served.drift
            if drift is not None and job.fallback is None:
                run_ns = int(rung.run_us(self.rows) * 1000)
                self._watch(drift, rung, job.inputs, outcome, run_ns=run_ns)
            if job.served.shadow is not None:
                job.served.shadow.offer(job.inputs, self.rows)
            self._answer(job.served, rung, outcome)

    def _watch(
        self, drift: Drift, rung: Rung, inputs: Tensors, outputs: Outputs, *, run_ns: int
    ) -> None:
        """Look before the program is answered, which may change its memory then."""
        if drift.due(run_ns):
            drift.observe(rung.name, inputs, outputs, self.rows)

    def _answer(self, served: Served, rung: Rung, outputs: Outputs) -> None:
        packet = ANSWER.pack(self._number, 0) + f"{served.version} {rung.name}".encode()
        if outputs is not self.outputs:
            try:
                shapes = self._take(outputs)
            except RequestError as e:
                self.reply.fail(self._number, e)
                return
            if shapes:
                packet += b" " + msgspec.json.encode(shapes)
        self.reply.send(packet)

    def _take(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
        """Copy outputs to their places; shapes of those that differ from their place's."""
        shapes = {}
        for name, place in self.outputs.items():
            found = outputs[name]
            if found.shape != place.shape:
                if found.nbytes > place.nbytes:
                    raise RequestError(
                        f"output {name!r} has shape {list(found.shape)}, {found.nbytes} bytes; its"
                        f" place in the memory has {place.nbytes}",
                        hint=f"open the model with shapes={{{name!r}: {list(found.shape)}}}",
                    )
                shapes[name] = found.shape
                place = np.ndarray(found.shape, place.dtype, place)
            np.copyto(place, found)
        return shapes
