"""Infer: one inference request from its bytes to its answer.

A request that was taken is answered exactly once: with its outputs, with an error, or by its
deadline; whichever comes first settles its job.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from edgekit.errors import (
    DeadlineMissed,
    EdgekitError,
    EngineError,
    NotServed,
    Overloaded,
    RequestError,
)
from edgekit_runtime.engines import Tensors
from edgekit_runtime.serving import data, http, v2
from edgekit_runtime.serving.connection import Connection, Request
from edgekit_runtime.serving.http import Response
from edgekit_runtime.serving.models import Models, Served
from edgekit_runtime.serving.scheduler import Job, Outputs, Retired
from edgekit_runtime.serving.stats import ErrorKind
from edgekit_runtime.serving.v2 import Form, Prepared

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
        self._loop = loop
        self._alone = alone

    def handle(
        self, request: Request, connection: Connection, name: str, version: str | None
    ) -> None:
        """Answer a request now or later, raising `NotServed` where there is no such model."""
        while True:
            served = self._models.find(name, version)
            try:
                self._submit(request, connection, served)
            except Retired:
                continue
            except EdgekitError as e:
                self._fail(connection, served, e)
            return

    def _submit(self, request: Request, connection: Connection, served: Served) -> None:
        prepared = served.forms.get(request.json)
        if prepared is None:
            prepared = v2.prepare(request.json, inputs=served.inputs, outputs=served.outputs)
            if prepared.is_plain:
                served.forms.put(request.json, prepared)
        form = prepared.form
        if form.variant is not None and form.variant != served.variant.name:
            raise RequestError(
                f"variant {form.variant!r} does not serve {served.name} {served.version} here,"
                f" {served.variant.name!r} does"
            )
        inputs = v2.read_arrays(
            form, request.binary, offset=request.offset, size_bytes=request.size_bytes
        )
        job = _Answer(inputs, prepared, connection, served, self._loop)
        connection.on_lost = job.abandon
        if form.timeout_us is not None:
            job.timer = self._loop.call_later(form.timeout_us / 1e6, job.expire)
        try:
            served.submit(job, alone=self._alone())
        except BaseException:
            job.abandon()
            connection.on_lost = None
            raise

    @staticmethod
    def _fail(connection: Connection, served: Served, error: EdgekitError) -> None:
        if isinstance(error, Overloaded):
            served.stats.rejected()
        else:
            served.stats.failed(kind_of(error))
        connection.respond(to_response(error))


class _Answer(Job):
    """A job that answers a connection."""

    __slots__ = ("connection", "prepared", "served", "timer")

    def __init__(
        self,
        inputs: Tensors,
        prepared: Prepared,
        connection: Connection,
        served: Served,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        Job.__init__(self, inputs, prepared.form.rows, prepared.form.shapes, loop)
        self.prepared = prepared
        self.connection = connection
        self.served = served
        self.timer: asyncio.TimerHandle | None = None

    def done(self, result: Outputs | Exception) -> None:
        """The engine ran, or failed."""
        if self.timer is not None:
            self.timer.cancel()
        if isinstance(result, Exception):
            self._fail(result)
            return
        try:
            response = encode(self.served, self.prepared, result)
        except EdgekitError as e:
            self._fail(e)
            return
        self.connection.respond(response)

    def expire(self) -> None:
        """The deadline came first."""
        if not self.settled:
            self.settled = True
            timeout_us = self.prepared.form.timeout_us
            self._fail(DeadlineMissed(f"not answered within its timeout of {timeout_us} us"))

    def abandon(self) -> None:
        """The client is gone: a job that still waits is not run."""
        self.settled = True
        if self.timer is not None:
            self.timer.cancel()

    def _fail(self, error: Exception) -> None:
        took_ns = time.perf_counter_ns() - self.arrived_ns
        self.served.stats.failed(kind_of(error), took_ns=took_ns)
        self.connection.respond(to_response(error))


def encode(served: Served, prepared: Prepared, outputs: Outputs) -> Response:
    """The answer that carries `outputs`; raises `RequestError` where JSON cannot carry one."""
    form = prepared.form
    if not prepared.is_plain:
        head, body, chunks = _written(served, form, outputs)
        return Response(200, head, (body, *chunks), _is_large(chunks))
    wanted = [outputs[output.name] for output in form.outputs]
    shapes = tuple([array.shape for array in wanted])
    beginning = prepared.answers.get(shapes)
    if beginning is None:
        beginning = prepared.answers.put(shapes, _written(served, form, outputs)[:2])
    head, body = beginning
    chunks = [data.to_binary(array) for array in wanted]
    return Response(200, head, (body, *chunks), _is_large(chunks))


def _is_large(chunks: Sequence[bytes | memoryview]) -> bool:
    return any(type(chunk) is memoryview for chunk in chunks)


def _written(
    served: Served, form: Form, outputs: Outputs
) -> tuple[bytes, bytes, list[bytes | memoryview]]:
    listed, chunks = v2.write_outputs(form, outputs, specs=served.outputs)
    answer = {
        "model_name": served.name,
        "model_version": served.version,
        "parameters": {"variant": served.variant.name},
        "outputs": listed,
    }
    if form.id:
        answer["id"] = form.id
    body = msgspec.json.encode(answer)
    length = len(body) + sum(map(len, chunks))
    kind = http.JSON
    header = ""
    if chunks:
        kind = http.OCTETS
        header = f"Inference-Header-Content-Length: {len(body)}\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{header}Content-Length: {length}\r\n"
    return head.encode(), body, chunks


def kind_of(error: Exception) -> ErrorKind:
    """How statistics call an error."""
    if isinstance(error, RequestError):
        return "request"
    if isinstance(error, DeadlineMissed):
        return "deadline"
    return "engine" if isinstance(error, EngineError) else "internal"


def to_response(error: Exception) -> Response:
    """The answer to a request that failed; one nobody foresaw is logged with an id."""
    if isinstance(error, Overloaded):
        headers = [("Retry-After", f"{error.retry_after_s:.0f}")]
        return http.error(429, error.message, headers=headers)
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            hint = f"; {error.hint}" if isinstance(error, EdgekitError) and error.hint else ""
            return http.error(status, f"{error}{hint}")
    request_id = secrets.token_hex(8)
    log.error("request failed", exc_info=error, extra={"request_id": request_id})
    return http.error(500, "internal error; see the log", request_id=request_id)


_STATUS: dict[type[Exception], int] = {
    RequestError: 400,
    NotServed: 404,
    DeadlineMissed: 504,
    EngineError: 500,
}
