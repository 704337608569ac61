"""Lane: the short way of a request whose head and JSON came before on its connection.

A client that asks the same model again sends the same bytes up to its tensors. What they mean was
checked when they first came; a lane keeps it, so that nothing is read, looked up or checked twice.
It is open only while the model version that the request was checked against still answers, and
whoever asked is still admitted; any doubt leads back to the long way, which gives the same answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgekit_runtime.serving import data
from edgekit_runtime.serving.form import Prepared, Slot
from edgekit_runtime.serving.http import Head
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.replies import HttpCall, beginning
from edgekit_runtime.serving.retirement import Retired
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served

# Of every datatype; the bytes of a request begin at a multiple of it.
_ALIGNMENT = 8

if TYPE_CHECKING:
    from edgekit_runtime.serving.connection import Connection
    from edgekit_runtime.serving.infer import Inference


class Lane:
    """The short way to one model version, for one form of request.

    Attributes:
        inference: the long way.
        served: the version that such requests were checked against.
        head: of such a request.
        size_bytes: what follows its JSON.
    """

    __slots__ = (
        "_alone",
        "_begin",
        "_is_latest",
        "_name",
        "_names",
        "_prepared",
        "_rung",
        "_shapes",
        "_slots",
        "_version",
        "head",
        "inference",
        "served",
        "size_bytes",
    )

    def __init__(
        self,
        inference: Inference,
        head: Head,
        served: Served,
        prepared: Prepared,
        *,
        name: str,
        version: str | None,
        is_latest: Callable[[Served, str | None], bool],
        alone: Callable[[], bool],
    ) -> None:
        form = prepared.form
        self.head = head
        self.size_bytes = form.binary_bytes
        self.inference = inference
        self.served = served
        self._prepared = prepared
        self._name = name
        self._version = version
        self._is_latest = is_latest
        self._alone = alone
        self._slots: tuple[Slot, ...] = form.slots
        self._names = tuple(wanted.name for wanted in form.outputs)
        # The answer up to its data, by who gave it and its shapes.
        self._rung: Rung | None = None
        self._shapes: list[tuple[int, ...]] = []
        self._begin = b""

    @property
    def is_open(self) -> bool:
        """Whether the version that such requests were checked against answers them still."""
        return self._is_latest(self.served, self._version)

    def take(self, binary: bytes, connection: Connection) -> None:
        """Answer a request whose tensors are these bytes, now or later."""
        job = _LaneJob(self, connection)
        job.inputs = {
            slot.name: np.ndarray(slot.shape, slot.dtype, binary, slot.offset)
            for slot in self._slots
        }
        form = self._prepared.form
        job.rows = form.rows
        job.key = form.shapes
        try:
            self.served.submit(job, alone=self._alone())
        except Retired:
            self.inference.begin(self.call(connection), self.served, job.inputs)
            return
        except Exception as e:  # noqa: BLE001 - one bad request must not end the server
            self.inference.refused(self.call(connection), self.served, e)
            return
        if not job.settled:
            connection.on_lost = job.leave

    def to(self, served: Served) -> Lane:
        """The same for another version, raising `Unavailable` where that takes other requests."""
        served.check_fits(self.served)
        return Lane(
            self.inference,
            self.head,
            served,
            self._prepared,
            name=self._name,
            version=self._version,
            is_latest=self._is_latest,
            alone=self._alone,
        )

    def call(self, connection: Connection) -> HttpCall:
        return HttpCall(connection, self._prepared, None, self._name, self._version, None)

    def answer(self, job: _LaneJob, outputs: Outputs, rung: Rung) -> None:
        arrays = [outputs[name] for name in self._names]
        shapes = [array.shape for array in arrays]
        if rung is not self._rung or shapes != self._shapes:
            if sum(array.nbytes for array in arrays) > data.COPY_BYTES:
                self.call(job.connection).answer(self.served, rung, outputs)
                return
            self._begin = beginning(self.served, rung, self._prepared, outputs)
            self._rung, self._shapes = rung, shapes
        self._tell(job, rung)
        job.connection.reply(b"".join([self._begin, *[array.tobytes() for array in arrays]]))

    def _tell(self, job: _LaneJob, rung: Rung) -> None:
        log = self.inference.log
        if log.is_verbose or time.perf_counter_ns() - job.arrived_ns >= log.slow_ns:
            log.answered(self.call(job.connection), self.served, rung)


def fits(head: Head, served: Served, prepared: Prepared) -> bool:
    """Whether requests of this form may take the short way."""
    form = prepared.form
    return (
        prepared.is_plain
        and not prepared.uses_regions
        and not form.finishes
        and (form.timeout_us, form.variant, form.cascade, form.priority) == (None, None, None, 0)
        and served.cascade is None
        and head.request_id is None
        and head.keep_alive
        and not head.expects_continue
        and all(slot.offset % _ALIGNMENT == 0 for slot in form.slots)
    )


class _LaneJob(Job):
    """A job that answers a connection by the short way."""

    def __init__(self, lane: Lane, connection: Connection) -> None:
        # Everything else stays as `Job` has it: there is no deadline and no wish.
        self.lane = lane
        self.connection = connection
        self.arrived_ns = time.perf_counter_ns()

    def done(self, outcome: Outputs | Exception, rung: Rung | None) -> None:
        lane = self.lane
        if isinstance(outcome, Exception):
            lane.inference.fail(lane.call(self.connection), outcome)
        else:
            assert rung is not None
            try:
                lane.answer(self, outcome, rung)
            except Exception as e:  # noqa: BLE001 - the client must not wait for ever
                lane.inference.refused(lane.call(self.connection), lane.served, e)

    def moved(self, served: Served) -> None:
        self.lane = self.lane.to(served)

    def leave(self) -> None:
        """The client closed its connection before its answer."""
        if not self.settled:
            self.lane.served.stats.cancelled()
        self.abandon()
