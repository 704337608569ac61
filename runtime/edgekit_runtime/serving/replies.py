"""Replies: what HTTP says to an inference request, outputs or an error."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edgekit.errors import EdgekitError, Overloaded, Unavailable
from edgekit_runtime.serving import http, v2
from edgekit_runtime.serving.call import Call
from edgekit_runtime.serving.connection import Connection
from edgekit_runtime.serving.failures import status_of
from edgekit_runtime.serving.form import Form, Prepared
from edgekit_runtime.serving.http import Response
from edgekit_runtime.serving.job import Outputs
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.shm import Regions

log = logging.getLogger(__name__)


class HttpCall(Call):
    """A request that came over a connection of ours."""

    __slots__ = ("connection", "prepared")

    def __init__(
        self,
        connection: Connection,
        prepared: Prepared,
        regions: Regions | None,
        name: str,
        version: str | None,
        request_id: str | None = None,
    ) -> None:
        Call.__init__(self, prepared.form, regions, name, version, request_id)
        self.connection = connection
        self.prepared = prepared

    def answer(self, served: Served, rung: Rung, outputs: Outputs) -> None:
        self.connection.respond(http.named(encode(served, rung, self, outputs), self.request_id))

    def fail(self, error: Exception) -> None:
        self.connection.respond(to_response(error, request_id=self.request_id))

    def waits(self, leave: Callable[[], None]) -> None:
        self.connection.on_lost = leave


def encode(served: Served, rung: Rung, call: HttpCall, outputs: Outputs) -> Response:
    """The answer that carries `outputs`; raises `RequestError` where JSON cannot carry one."""
    prepared = call.prepared
    form = prepared.form
    if not prepared.is_plain:
        head, body, chunks = _written(served, rung, form, outputs, call.regions)
        return Response(200, head, (body, *chunks), _is_large(chunks))
    kind = (rung.name, *[outputs[wanted.name].shape for wanted in form.outputs])
    beginning = prepared.answers.get(kind)
    if beginning is None:
        head, body, chunks = _written(served, rung, form, outputs, call.regions)
        prepared.answers.put(kind, (head, body))
    else:
        head, body = beginning
        chunks = v2.write_data(form, outputs, regions=call.regions)
    return Response(200, head, (body, *chunks), _is_large(chunks))


def beginning(served: Served, rung: Rung, prepared: Prepared, outputs: Outputs) -> bytes:
    """The answer to a plain form up to the data of its outputs."""
    head, body, _ = _written(served, rung, prepared.form, outputs, None)
    return b"".join((head, b"\r\n", body))


def facts(served: Served, rung: Rung, form: Form) -> dict[str, Any]:
    """What an answer says beside its outputs, in every protocol."""
    said: dict[str, Any] = {
        "model_name": served.name,
        "model_version": served.version,
        "parameters": {"variant": rung.name},
    }
    return {**said, "id": form.id} if form.id else said


def _is_large(chunks: Sequence[bytes | memoryview]) -> bool:
    return any(type(chunk) is memoryview for chunk in chunks)


def _written(
    served: Served, rung: Rung, form: Form, outputs: Outputs, regions: Regions | None
) -> tuple[bytes, bytes, list[bytes | memoryview]]:
    listed, chunks = v2.write_outputs(form, outputs, regions=regions)
    body = msgspec.json.encode({**facts(served, rung, form), "outputs": listed})
    length = len(body) + sum(map(len, chunks))
    kind = http.JSON
    header = ""
    if chunks:
        kind = http.OCTETS
        header = f"Inference-Header-Content-Length: {len(body)}\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{header}Content-Length: {length}\r\n"
    return head.encode(), body, chunks


def to_response(error: Exception, *, request_id: str | None = None) -> Response:
    """The answer to a request that failed; one nobody foresaw is logged with an id.

    Args:
        error: why.
        request_id: what the client calls the request.
    """
    status = status_of(error)
    if status is not None:
        hint = f"; {error.hint}" if isinstance(error, EdgekitError) and error.hint else ""
        headers = []
        if isinstance(error, Overloaded | Unavailable):
            headers.append(("Retry-After", f"{math.ceil(error.retry_after_s):d}"))
        return http.named(http.error(status, f"{error}{hint}", headers=headers), request_id)
    logged = request_id or secrets.token_hex(8)
    log.error("request failed", exc_info=error, extra={"request_id": logged})
    response = http.error(500, "internal error; see the log", request_id=logged)
    return http.named(response, request_id)
