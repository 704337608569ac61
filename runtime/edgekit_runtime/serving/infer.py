"""Infer: inference requests of every protocol, from what was received to what is answered.

`submit` is the way into the schedulers for every protocol. A request with pictures is prepared by
the model's pipeline on a thread before it is scheduled, and finished by it after.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from edgekit.errors import EdgekitError
from edgekit_runtime.engines import Tensors
from edgekit_runtime.pipeline import Frame
from edgekit_runtime.serving import lane, pictures, v2
from edgekit_runtime.serving.accesslog import AccessLog
from edgekit_runtime.serving.application import Request
from edgekit_runtime.serving.call import Call
from edgekit_runtime.serving.connection import Connection
from edgekit_runtime.serving.failures import kind_of, refusal_of
from edgekit_runtime.serving.form import Prepared
from edgekit_runtime.serving.job import Job, Outputs
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.preparation import Preparation
from edgekit_runtime.serving.replies import HttpCall, to_response
from edgekit_runtime.serving.retirement import Retired
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.shm import Regions

log = logging.getLogger(__name__)


class Inference:
    """Runs inference requests on what `models` serves.

    Args:
        models: what is served.
        loop: the server's.
        alone: whether no second client is connected.
    """

    def __init__(
        self, models: Models, *, loop: asyncio.AbstractEventLoop, alone: Callable[[], bool]
    ) -> None:
        self._models = models
        self._alone = alone
        self.preparation = Preparation(loop)
        self.log = AccessLog()

    def submit(
        self,
        name: str,
        version: str | None,
        make: Callable[[Served], Job],
        *,
        alone: bool = False,
    ) -> Job:
        """Make a job for a model and schedule it.

        Args:
            name: of the model.
            version: of the model; its highest by default.
            make: makes the job for what serves now; called again where that is replaced meanwhile.
            alone: whether no other request can be on its way.

        Raises:
            EdgekitError: the request cannot be taken; it is counted already.
        """
        while True:
            served = self._models.find(name, version)
            try:
                job = make(served)
                served.submit(job, alone=alone)
            except Retired:
                continue
            except EdgekitError as e:
                count(served, e)
                raise
            return job

    def handle(
        self,
        request: Request,
        connection: Connection,
        name: str,
        version: str | None,
        regions: Callable[[], Regions],
    ) -> None:
        """Answer a request now or later.

        Args:
            request: received whole.
            connection: takes the answer.
            name: of the model.
            version: of the model; its highest by default.
            regions: the shared memory of this client; raises where it may have none.

        Raises:
            NotServed: there is no such model.
        """
        served = self._models.find(name, version)
        request_id = request.head.request_id
        try:
            prepared = self._prepared(request, served)
            form = prepared.form
            shared = regions() if prepared.uses_regions else None
            arrays = v2.read_arrays(
                form,
                request.binary,
                offset=request.offset,
                size_bytes=request.size_bytes,
                regions=shared,
                allocate=served.allocate,
            )
        except EdgekitError as e:
            count(served, e)
            connection.respond(to_response(e, request_id=request_id))
            return
        call = HttpCall(connection, prepared, shared, name, version, request_id)
        if lane.fits(request.head, served, prepared):
            connection.offered = lane.Lane(
                self,
                request.head,
                served,
                prepared,
                name=name,
                version=version,
                is_latest=self._models.answers,
                alone=self._alone,
            )
        self.begin(call, served, arrays)

    def begin(self, call: Call, served: Served, arrays: Tensors) -> None:
        """Answer a call now or later.

        Args:
            call: takes the answer.
            served: the version that the request was checked against.
            arrays: the request's, as its form says.
        """
        form = call.form
        if form.pictures is None and not form.finishes:
            self._submit(call, arrays, ())
        else:
            self._prepare(call, served, arrays)

    def close(self) -> None:
        """End the threads that read pictures."""
        self.preparation.close()

    def _prepared(self, request: Request, served: Served) -> Prepared:
        prepared = served.forms.get(request.json)
        if prepared is None:
            prepared = v2.prepare(
                request.json,
                inputs=served.inputs,
                outputs=served.outputs,
                surface=served.surface,
                labels=served.labels,
            )
            if prepared.is_plain:
                served.forms.put(request.json, prepared)
        return prepared

    def _submit(self, call: Call, inputs: Tensors, frames: Sequence[Frame]) -> None:
        def make(served: Served) -> Job:
            return _Answer(self, call, served, inputs, frames)

        try:
            job = self.submit(call.name, call.version, make, alone=self._alone())
        except Exception as e:  # noqa: BLE001 - one bad request must not end the server
            self.fail(call, e)
            return
        if not job.settled:
            call.waits(partial(_left, job))

    def _prepare(self, call: Call, served: Served, arrays: Tensors) -> None:
        """Let the model's pipeline make its input of pictures, away from the loop."""
        manifest = served.manifest

        def work() -> pictures.Prepared:
            return pictures.prepare_inputs(manifest, arrays)

        gone: list[bool] = []

        def done(result: pictures.Prepared | Exception) -> None:
            if gone:
                served.stats.cancelled()
            elif isinstance(result, Exception):
                self.refused(call, served, result)
            else:
                self._submit(call, result.tensors, result.frames)

        try:
            if call.form.pictures is None:
                self._submit(call, arrays, pictures.frames_of(manifest, arrays))
            else:
                self.preparation.submit(work, done)
                call.waits(lambda: gone.append(True))
        except EdgekitError as e:
            self.refused(call, served, e)

    def refused(self, call: Call, served: Served, error: Exception) -> None:
        """Answer and count a request that no scheduler took."""
        count(served, error)
        self.fail(call, error)

    def fail(self, call: Call, error: Exception) -> None:
        """Answer with an error."""
        call.fail(error)
        self.log.failed(call, error)


class _Answer(Job):
    """A job that answers a call."""

    def __init__(
        self,
        inference: Inference,
        call: Call,
        served: Served,
        inputs: Tensors,
        frames: Sequence[Frame],
    ) -> None:
        form = call.form
        timeout_us = form.timeout_us
        Job.__init__(
            self,
            inputs,
            rows=form.rows,
            key=form.shapes if form.pictures is None else _shapes(inputs),
            deadline_ns=None if timeout_us is None else call.arrived_ns + timeout_us * 1000,
            priority=form.priority,
            variant=form.variant,
            cascade=form.cascade if form.cascade is not None else served.cascade,
        )
        self.inference = inference
        self.call = call
        self.served = served
        self.frames = frames

    def moved(self, served: Served) -> None:
        served.check_fits(self.served)
        self.served = served

    def done(self, outcome: Outputs | Exception, rung: Rung | None) -> None:
        if isinstance(outcome, Exception):
            self._fail(outcome)
            return
        assert rung is not None
        if not self.call.form.finishes:
            self._respond(outcome, rung)
            return
        manifest, frames = self.served.manifest, self.frames

        def finished(result: Outputs | Exception) -> None:
            if isinstance(result, Exception):
                count(self.served, result)
                self._fail(result)
            else:
                self._respond({**outcome, **result}, rung)

        try:
            self.inference.preparation.submit(
                lambda: pictures.finish(manifest, outcome, frames), finished, admitted=True
            )
        except EdgekitError as e:
            finished(e)

    def _respond(self, outputs: Outputs, rung: Rung) -> None:
        try:
            self.call.answer(self.served, rung, outputs)
        except Exception as e:  # noqa: BLE001 - the client must not wait for ever
            count(self.served, e)
            self._fail(e)
        else:
            self.inference.log.answered(self.call, self.served, rung)

    def _fail(self, error: Exception) -> None:
        self.inference.fail(self.call, error)


def _shapes(inputs: Tensors) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((name, array.shape[1:]) for name, array in inputs.items()))


def _left(job: Job) -> None:
    """The client closed its connection before its answer."""
    if not job.settled and isinstance(job, _Answer):
        job.served.stats.cancelled()
    job.abandon()


def count(served: Served, error: Exception) -> None:
    """Count a request that failed before a scheduler took it."""
    refusal = refusal_of(error)
    if refusal is not None:
        served.stats.rejected(refusal)
    else:
        served.stats.failed(kind_of(error))
