"""Calls: inference requests that came by gRPC, run as those of HTTP are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from edgekit.errors import DeadlineMissed
from edgekit_runtime.serving import offer, v2
from edgekit_runtime.serving.app import Service
from edgekit_runtime.serving.call import Call
from edgekit_runtime.serving.form import Form
from edgekit_runtime.serving.grpc import convert
from edgekit_runtime.serving.grpc import inference_pb2 as pb
from edgekit_runtime.serving.infer import count
from edgekit_runtime.serving.job import Outputs
from edgekit_runtime.serving.replies import facts
from edgekit_runtime.serving.request import Request
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.shm import Regions


async def infer(
    service: Service,
    message: pb.ModelInferRequest,
    *,
    remaining_s: float | None,
    regions: Callable[[], Regions],
) -> pb.ModelInferResponse:
    """Answer a request.

    Args:
        service: the server's.
        message: the request.
        remaining_s: until its client waits no more; `None` for as long as it takes.
        regions: the shared memory of this client; raises where it may have none.

    Raises:
        EdgekitError: it cannot be answered; it is counted already.
        asyncio.CancelledError: the client left.
    """
    name, version = message.model_name, message.model_version or None
    served = service.models.find(name, version)
    try:
        asked = convert.asked(message)
        request = _within(asked.request, remaining_s)
        offered = v2.offered(
            served.inputs, served.outputs, surface=served.surface, labels=served.labels
        )
        form = offer.check(request, offered, typed=asked.typed)
        shared = regions() if form.uses_regions else None
        arrays = v2.read_arrays(
            form,
            asked.binary,
            offset=0,
            size_bytes=len(asked.binary),
            regions=shared,
            allocate=served.allocate,
        )
    except Exception as e:
        count(served, e)
        raise
    call = _GrpcCall(form, shared, name, version)
    service.inference.begin(call, served, arrays)
    try:
        return await call.answered
    finally:
        call.leave()


def _within(request: Request, remaining_s: float | None) -> Request:
    """The request with the client's own patience as its timeout, where that is shorter."""
    if remaining_s is None:
        return request
    if remaining_s <= 0:
        raise DeadlineMissed("its client waits no more")
    remaining_us = max(1, int(remaining_s * 1e6))
    given = request.parameters.timeout or remaining_us
    parameters = msgspec.structs.replace(request.parameters, timeout=min(given, remaining_us))
    return msgspec.structs.replace(request, parameters=parameters)


class _GrpcCall(Call):
    """A request that a coroutine waits for."""

    __slots__ = ("answered", "leave")

    def __init__(self, form: Form, regions: Regions | None, name: str, version: str | None) -> None:
        Call.__init__(self, form, regions, name, version)
        self.answered: asyncio.Future[pb.ModelInferResponse] = (
            asyncio.get_running_loop().create_future()
        )
        self.leave: Callable[[], None] = _stay

    def answer(self, served: Served, rung: Rung, outputs: Outputs) -> None:
        listed, chunks = v2.write_outputs(self.form, outputs, regions=self.regions)
        message = convert.answer(facts(served, rung, self.form), listed, chunks)
        if not self.answered.done():
            self.answered.set_result(message)

    def fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)

    def waits(self, leave: Callable[[], None]) -> None:
        self.leave = leave


def _stay() -> None:
    """The answer is there already."""
