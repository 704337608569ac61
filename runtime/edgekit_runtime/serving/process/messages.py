"""Messages: what parent and child say at the doorbell, each one packet.

Tensors are never in them: a message says where in the arena they lie, and by a number what they are
(`layouts`), so that the question and the answer of a usual run have some fifteen bytes each. They
are MessagePack, decoded by type; nothing is unpickled.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.placed import Placed
from edgekit_runtime.serving.process.layouts import Layout

# Less than what Linux takes as one packet of a socket pair by default.
PACKET_BYTES = 128 << 10


class Open(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Open an artefact; the first message, and said once."""

    artifact: str
    engine: str
    options: dict[str, Any]


class Run(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Run the model once.

    Attributes:
        layout: number of the inputs' layout.
        fresh: what the number means from now on, where that is new.
        starts: where in the arena each input lies.
        text_bytes: how long each input of BYTES is there.
        answer: where the outputs go, one after the other, each aligned.
        room: bytes there.
        moves: bytes to bring together first: from, to, how many.
    """

    layout: int
    fresh: Layout | None
    starts: tuple[int, ...]
    text_bytes: tuple[int, ...]
    answer: int
    room: int
    moves: tuple[tuple[int, int, int], ...]


class Write(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Write the outputs that did not fit to another place, which has the room."""

    answer: int


class Rest(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Give back, with the next run, memory that only runs need. It has no answer."""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The model is open."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    providers: tuple[str, ...]
    placement: Placed | None


class Done(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The outputs are written.

    Attributes:
        layout: number of the outputs' layout, `fresh` as in `Run`.
        text_bytes: how long each output of BYTES is.
        run_ns: what the engine took.
    """

    layout: int
    fresh: Layout | None
    text_bytes: tuple[int, ...]
    run_ns: int


class More(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """The outputs need this much room; they wait for a `Write`."""

    size_bytes: int


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """The engine refused; `kind` is the class of the error."""

    kind: str
    message: str
    hint: str | None


Question = Open | Run | Write | Rest
Answer = Opened | Done | More | Failed

encode = msgspec.msgpack.Encoder().encode
REST = encode(Rest())
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
