"""Doorbell: what a local program and the server say to each other about memory that both see.

Tensors lie in memory that the program made and the server mapped; a request is a ring of eight
bytes, an answer some more. docs/client.md gives it to the byte. This page is for both sides, and
imports neither of them.

1. The program connects to a Unix socket of packets (SOCK_SEQPACKET) and sends a `Hello`.
2. The server answers with a `Layout`: how large the memory must be, and where each tensor lies.
3. The program sends its memory file (memfd), sealed against shrinking, with the packet `MAP`.
4. The server answers `READY`. From here on the program sends rings, and each gets one answer.

A refusal comes in an answer's place: a `Refusal` for a ring; before, one for slot `NO_SLOT`, after
which the server closes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit import errors
from edgekit.errors import EdgekitError, RequestError, ServingError
from edgekit.manifest import Datatype
from edgekit.structs import Strict
from edgekit_runtime.engines.tensors import DTYPES

PROTOCOL: Literal[1] = 1
MAP = b"map"
READY = b"ready"
MAX_PACKET_BYTES = 65536
MAX_SLOTS = 16
NO_SLOT = 0xFFFF

# Slot, priority (0: the default), microseconds that the program gives (0: any time).
RING = struct.Struct("<HHI")
# Slot, and 0 or `REFUSED`; then "VERSION VARIANT" and, where an output is smaller than its place,
# its shape in JSON: or a `Refusal` in JSON.
ANSWER = struct.Struct("<HH")
REFUSED = 1

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Shape = Annotated[tuple[Size, ...], msgspec.Meta(max_length=32)]


class Changed(RequestError):
    """A model's inputs or outputs are others than when it was opened."""


class Hello(Strict, frozen=True, kw_only=True):
    """What a program wants to ask.

    Attributes:
        version: of the model; the highest, at each request, where it is None.
        variant: the one that must answer; the server's choice where it is None.
        rows: samples in a request, where axis 0 counts them.
        slots: requests that may be on their way at a time, each with tensors of its own.
        shapes: of inputs with sizes that the caller chooses, and the largest ones of outputs with
            sizes that the model chooses.
    """

    doorbell: Literal[1] = PROTOCOL
    model: str
    version: str | None = None
    variant: str | None = None
    rows: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    slots: Annotated[int, msgspec.Meta(ge=1, le=MAX_SLOTS)] = 1
    shapes: dict[str, Shape] = {}


class Place(Strict, frozen=True, kw_only=True):
    """Where a tensor lies within its slot, in bytes."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    def view(self, memory: Any, start: int) -> NDArray[Any]:
        """The tensor in the slot that begins at `start` of `memory`."""
        return np.ndarray(self.shape, DTYPES[self.datatype], memory, start + self.offset)


class Layout(Strict, frozen=True, kw_only=True):
    """Where each tensor lies; slot n begins at n * `slot_bytes`."""

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    slot_bytes: int
    slots: int

    @property
    def size_bytes(self) -> int:
        """Of the memory file."""
        return self.slot_bytes * self.slots


class Refusal(Strict, frozen=True, kw_only=True):
    """Why a request has no answer.

    Attributes:
        kind: class of the error; one that the program does not know is a `ServingError`.
        retry_after_s: when it makes sense to ask again.
    """

    kind: str
    message: str
    hint: str | None = None
    retry_after_s: float | None = None

    def error(self) -> EdgekitError:
        """What the program raises."""
        kind = _KINDS.get(self.kind, ServingError)
        if issubclass(kind, (errors.Overloaded, errors.Unavailable)):
            return kind(self.message, retry_after_s=self.retry_after_s or 0.0, hint=self.hint)
        return kind(self.message, hint=self.hint)


_KINDS: Mapping[str, type[EdgekitError]] = {
    kind.__name__: kind
    for kind in (
        Changed,
        RequestError,
        errors.AccessDenied,
        errors.NotServed,
        errors.Overloaded,
        errors.Unavailable,
        errors.DeadlineMissed,
        errors.WorkerLost,
        errors.PlacementBroken,
        errors.EngineError,
    )
}


def refusal(error: EdgekitError) -> Refusal:
    """An error as the program is told of it: by the narrowest class that it knows."""
    names = [kind.__name__ for kind in type(error).__mro__]
    known = next((name for name in names if name in _KINDS), ServingError.__name__)
    after_s = getattr(error, "retry_after_s", None)
    return Refusal(kind=known, message=error.message, hint=error.hint, retry_after_s=after_s)


def read_hello(packet: bytes) -> Hello:
    """A program's first packet, raising `RequestError` that names the wrong field."""
    try:
        return msgspec.json.decode(packet, type=Hello)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise RequestError(
            f"the first packet is not valid: {e}", hint=f"doorbell {PROTOCOL} is spoken here"
        ) from e


def read_refusal(raw: bytes) -> Refusal:
    """Raises `ServingError` where the server sent something else."""
    try:
        return msgspec.json.decode(raw, type=Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise ServingError(f"the server's packet is not valid: {e}") from e


def read_layout(raw: bytes) -> Layout:
    """Raises `ServingError` where the server sent something else."""
    try:
        return msgspec.json.decode(raw, type=Layout)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise ServingError(f"the server's packet is not valid: {e}") from e
