"""Application: what the connections of a server share, and what passes between it and them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from edgekit_runtime.serving.http import Head

if TYPE_CHECKING:
    from edgekit_runtime.serving.connection import Connection
    from edgekit_runtime.serving.room import Room


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may take.

    Attributes:
        head_bytes: of a request's head; more is answered 431.
        body_bytes: of a request's body; more is answered 413.
        total_bytes: of bodies under way and of answers not taken, over all clients; a request
            beyond is answered 503.
        connections: open at once; see `room` for who makes way for further ones.
        handshake_s: for TLS.
        receive_s: from the first to the last byte of a request.
        idle_s: between requests.
        send_s: to take an answer.
    """

    head_bytes: int = 16 << 10
    body_bytes: int = 64 << 20
    total_bytes: int = 256 << 20
    connections: int = 1024
    handshake_s: float = 10.0
    receive_s: float = 60.0
    idle_s: float = 300.0
    send_s: float = 60.0


class Request(msgspec.Struct, frozen=True):
    """A request that was received whole.

    Attributes:
        json: the body up to where binary tensors begin.
        binary: holds the rest of the body, from `offset`, `size_bytes` long.
    """

    head: Head
    json: bytes
    binary: bytes | memoryview
    offset: int
    size_bytes: int


class Application(Protocol):
    """What connections share: who answers requests, and what all of them may take."""

    limits: Limits
    # Grows when heads must be looked at anew: who is admitted has changed.
    generation: int
    room: Room

    def opened(self, connection: Connection) -> bool:
        """Note a connection; whether it may stay."""
        ...

    def closed(self, connection: Connection) -> None: ...

    def parse(self, raw: bytes) -> Head:
        """Read a head, raising `HttpError` where it cannot be answered here."""
        ...

    def allocate(self, head: Head, size_bytes: int) -> memoryview | None:
        """Memory where the engine of this request finds a body; `None` for any other."""
        ...

    def handle(self, request: Request, connection: Connection) -> None:
        """Answer a request, now or later, by `connection.respond`."""
        ...
