"""Calls: what the parent says for one run, and what it makes of the answers. No reading or waiting.

A call is a generator of packets that is sent the answers, so that the same lines serve a loader
thread, which waits for each answer, and the event loop, which does not.

Small tensors, where microseconds count, have a place of their own, the desk: a run like an earlier
one copies its inputs there and says what was said then, to the byte, and its outputs are copied
from there. Large ones have blocks, and are not copied again.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit import errors
from edgekit.errors import EngineError, UsageError
from edgekit_runtime.engines import Tensors
from edgekit_runtime.serving.process.arena import Arena
from edgekit_runtime.serving.process.layouts import Layout, Numbered, Told, placed
from edgekit_runtime.serving.process.messages import Answer, Done, Failed, More, Run, Write, encode
from edgekit_runtime.serving.process.staging import Input, fill, gather, stage, take

# Copying this much twice is cheaper than to hand out and take back a block.
DESK_BYTES = 64 << 10

_KINDS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, (EngineError, UsageError))
}


class Result(NamedTuple):
    """What a run gave, and where its time went, in nanoseconds."""

    outputs: dict[str, NDArray[Any]]
    stack_ns: int
    run_ns: int


Call = Generator[bytes, Answer, Result]


class _Usual(NamedTuple):
    """A run at the desk: where its inputs go, and what is said."""

    views: list[NDArray[Any]]
    packet: bytes


class Calls:
    """The runs of one worker.

    Args:
        arena: shared with it.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._inputs = Numbered()
        self._outputs = Told()
        # By number of the inputs' layout: what is usual at the desk, and room for what is not.
        self._usual: dict[int | None, _Usual] = {}
        self._rooms: dict[int | None, int] = {}
        self._in_tray = take(arena, DESK_BYTES)
        self._out_tray = take(arena, DESK_BYTES)

    def run(self, samples: Sequence[Tensors]) -> Call:
        """Run these inputs, joined on axis 0 where they are several.

        Large outputs are views of the arena, which has their room back when the last one is gone.

        Raises:
            EngineError: what the engine said.
            Overloaded: the arena has no room for the inputs or the outputs.
        """
        begun = time.perf_counter_ns()
        inputs = gather(samples)
        layout = tuple([given.tensor for given in inputs])
        number = self._inputs.known(layout)
        usual = self._usual.get(number)
        if usual is None:
            staged = stage(self._arena, inputs)
            room = self._rooms.get(number, DESK_BYTES)
            block = self._out_tray if room <= DESK_BYTES else take(self._arena, room)
            # Numbered only now that nothing can keep the child from being told.
            number, fresh = self._number(layout)
            texts = tuple(i.size_bytes for i in inputs if i.is_text)
            packet = encode(
                Run(number, fresh, staged.starts, texts, block.start, room, staged.moves)
            )
        else:
            fill(usual.views, inputs)
            packet, block = usual.packet, self._out_tray
        stacked = time.perf_counter_ns()
        answer = yield packet
        if isinstance(answer, More):
            self._usual.pop(number, None)
            self._rooms[number] = answer.size_bytes
            block = take(self._arena, answer.size_bytes)
            answer = yield encode(Write(block.start))
        if isinstance(answer, Failed):
            raise raised(answer)
        assert isinstance(answer, Done), answer
        frame = self._outputs.frame(answer.layout, answer.fresh)
        starts, _ = frame.places(answer.text_bytes)
        outputs = frame.read(block.data, starts, answer.text_bytes)
        if block is self._out_tray:
            outputs = {name: output.copy() for name, output in outputs.items()}
            if usual is None:
                self._remember(number, inputs)
        return Result(outputs, stacked - begun, answer.run_ns)

    def close(self) -> None:
        """Hold nothing of the arena any more."""
        self._usual = {}
        del self._in_tray, self._out_tray

    def _number(self, layout: Layout) -> tuple[int, Layout | None]:
        number, fresh = self._inputs.number(layout)
        if fresh is not None:
            self._usual.pop(number, None)
            self._rooms.pop(number, None)
        return number, fresh

    def _remember(self, number: int | None, inputs: Sequence[Input]) -> None:
        """Have the next run like this one at the desk, if it is small."""
        starts, size = placed(given.size_bytes for given in inputs)
        if size > DESK_BYTES or number is None or any(given.is_text for given in inputs):
            return
        tray, to = self._in_tray, self._out_tray.start
        tensors = [given.tensor for given in inputs]
        views = [
            np.ndarray(shape, dtype, tray.data, start)
            for (_, dtype, shape), start in zip(tensors, starts, strict=True)
        ]
        places = tuple(tray.start + start for start in starts)
        self._usual[number] = _Usual(
            views, encode(Run(number, None, places, (), to, DESK_BYTES, ()))
        )


def raised(failed: Failed) -> EngineError | UsageError:
    """The error that the engine raised in the child."""
    return _KINDS.get(failed.kind, EngineError)(failed.message, hint=failed.hint)
