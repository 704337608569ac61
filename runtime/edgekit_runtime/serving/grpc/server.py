"""GrpcServer: the gRPC side of a server, on the same event loop as its HTTP side.

A call is admitted before its message is received: a stranger's bytes are not read.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import msgspec

from edgekit.errors import AccessDenied, ServingError
from edgekit_runtime.serving.access import Access
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.app import Service
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.grpc import inference_pb2 as pb
from edgekit_runtime.serving.grpc import status
from edgekit_runtime.serving.grpc.service import Context, InferenceService, token_of
from edgekit_runtime.serving.http import MAX_REQUEST_ID_CHARS
from edgekit_runtime.serving.listen import GRPC_CONNECTIONS
from edgekit_runtime.serving.tls import Tls, pem

log = logging.getLogger(__name__)

# Calls at a time, over all clients; each may hold one message.
MAX_CALLS = 256
# gRPC's own name for "ask again after"; clients with a retry policy follow it.
PUSHBACK = "grpc-retry-pushback-ms"

REQUEST_ID = "x-request-id"

Trailer = tuple[tuple[str, str], ...]
Method = Callable[[Any, Context], Awaitable[Any]]

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class GrpcServer:
    """Serves gRPC at one address. Used on the event loop.

    Args:
        service: what all listeners of the server share.
        access: the rule of this listener, which says where it is.
        tls: files; read once, at the start.
    """

    def __init__(self, service: Service, access: Access, *, tls: Tls | None) -> None:
        self._service = service
        self._access = access
        self._tls = tls
        self._server: Any = None
        assert isinstance(access.listener, Tcp)
        self.address = access.listener

    async def start(self) -> None:
        """Listen, raising `ServingError` where the address is taken."""
        server: Any = grpc.aio.server(
            options=_options(self._service.limits), maximum_concurrent_rpcs=MAX_CALLS
        )
        try:
            if self._tls is None:
                port = server.add_insecure_port(self.address.authority)
            else:
                port = server.add_secure_port(self.address.authority, _credentials(self._tls))
        except RuntimeError as e:
            raise ServingError(
                f"cannot listen on {self.address.authority} for gRPC: is it in use?",
                hint="stop the program that uses it, or choose another address with --grpc",
            ) from e
        self.address = msgspec.structs.replace(self.address, port=port)
        methods = InferenceService(self._service, self._access, here=self.address)
        server.add_generic_rpc_handlers((_Handlers(methods, self._access),))
        await server.start()
        self._server = server
        log.info("server listens for gRPC", extra={"on": self.address.authority})

    async def close(self, *, timeout_s: float) -> None:
        """Take no new calls, finish those under way, then drop what is left."""
        if self._server is not None:
            await self._server.stop(timeout_s)


class _Handlers:
    """Finds the method of a call, for those who may call one (`grpc.GenericRpcHandler`)."""

    def __init__(self, methods: InferenceService, access: Access) -> None:
        self._access = access
        self._handlers = {
            f"/{_SERVICE.full_name}/{method.name}": _handler(method, methods)
            for method in _SERVICE.methods
        }

    def service(self, details: Any) -> Any:
        try:
            self._access.admit(token_of(details.invocation_metadata))
        except AccessDenied as e:
            return _refusing(e)
        return self._handlers.get(details.method)


def _handler(method: Any, methods: InferenceService) -> Any:
    """What gRPC runs for a method of the protocol: ours of the same name, in Python's spelling."""
    ours = getattr(methods, _UPPER.sub("_", method.name).lower())
    make = grpc.unary_unary_rpc_method_handler
    answer = _answering(ours)
    if method.client_streaming:
        make, answer = grpc.stream_stream_rpc_method_handler, ours
    return make(
        answer,
        request_deserializer=getattr(pb, method.input_type.name).FromString,
        response_serializer=getattr(pb, method.output_type.name).SerializeToString,
    )


_UPPER = re.compile(r"(?<!^)(?=[A-Z])")


def _answering(ours: Method) -> Method:
    """A method that ends a call with a status where ours raises, and gives its id back."""

    async def answer(message: Any, context: Context) -> Any:
        trailer = tuple(
            (name, value)
            for name, value in context.invocation_metadata() or ()
            if name == REQUEST_ID and len(value) <= MAX_REQUEST_ID_CHARS
        )
        try:
            found = await ours(message, context)
        except Exception as e:  # noqa: BLE001 - one bad request must not end the server
            await _end(context, e, trailer)
        else:
            context.set_trailing_metadata(trailer)
            return found

    return answer


def _refusing(error: Exception) -> Any:
    """What runs for a call that is not admitted. As a stream, so that no message is received."""

    async def refuse(_: Any, context: Context) -> None:
        await _end(context, error, ())

    return grpc.stream_stream_rpc_method_handler(refuse)


async def _end(context: Context, error: Exception, trailer: Trailer) -> None:
    code, text = status.of(error)
    after_s = status.retry_after_s(error)
    if after_s is not None:
        trailer = (*trailer, (PUSHBACK, str(math.ceil(after_s * 1000))))
    await context.abort(code, text, trailer)


def _credentials(tls: Tls) -> Any:
    cert, key, *client_ca = pem(tls)
    return grpc.ssl_server_credentials(
        [(key, cert)],
        root_certificates=client_ca[0] if client_ca else None,
        require_client_auth=bool(client_ca),
    )


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        # Else a second server takes half of the calls of the first, and nobody is told.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", limits.total_bytes),
        ("grpc.max_metadata_size", limits.head_bytes),
        ("grpc.max_concurrent_streams", MAX_CALLS),
        ("grpc.max_allowed_incoming_connections", GRPC_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", math.ceil(limits.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", math.ceil(limits.idle_s * 1000)),
        # A client that is gone without a word is noticed.
        ("grpc.keepalive_time_ms", math.ceil(limits.receive_s * 1000)),
        ("grpc.keepalive_timeout_ms", math.ceil(limits.send_s * 1000)),
    ]
