"""Staging: inputs brought to where the child finds them.

What lies in the arena stays where it is. What does not is copied there, once. Samples that are run
together are brought together there; what of them is large and in the arena already is moved by the
child, so that the event loop copies no megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import Overloaded
from edgekit_runtime.engines import Tensors
from edgekit_runtime.serving.process import layouts
from edgekit_runtime.serving.process.arena import Arena, Block
from edgekit_runtime.serving.process.layouts import TEXTS, Content, Tensor

# A request this small is received into its connection's buffer, and so never into an arena.
SMALL_BYTES = 16 << 10
_RETRY_S = 1.0


class Input(NamedTuple):
    """One input: what it is, and what it is put together from on axis 0."""

    tensor: Tensor
    parts: Sequence[Content]
    size_bytes: int

    @property
    def is_text(self) -> bool:
        return self.tensor[1] == TEXTS


class Staged(NamedTuple):
    """Inputs in an arena, as a `messages.Run` tells of them; they stay there as long as this."""

    starts: tuple[int, ...]
    moves: tuple[tuple[int, int, int], ...]
    block: Block | None


def gather(samples: Sequence[Tensors]) -> list[Input]:
    """What there is to bring: the inputs of several runs, joined on axis 0, or those of one."""
    if len(samples) == 1:
        return [_whole(name, array) for name, array in samples[0].items()]
    inputs = []
    for name, array in samples[0].items():
        parts = [sample[name] for sample in samples]
        if array.dtype.hasobject:
            inputs.append(_whole(name, np.concatenate(parts)))
            continue
        shape = (sum(map(len, parts)), *array.shape[1:])
        size_bytes = sum([part.nbytes for part in parts])
        inputs.append(Input((name, array.dtype.str, shape), parts, size_bytes))
    return inputs


def stage(arena: Arena, inputs: Sequence[Input]) -> Staged:
    """Bring inputs into the arena, raising `Overloaded` where it has no room."""
    found = [_find(arena, given) for given in inputs]
    missing = [given for given, start in zip(inputs, found, strict=True) if start is None]
    offsets, size = layouts.placed(given.size_bytes for given in missing)
    block = take(arena, size) if missing else None
    moves: list[tuple[int, int, int]] = []
    for given, offset in zip(missing, offsets, strict=True):
        assert block is not None
        moves += _put(arena, block, offset, given)
    base = 0 if block is None else block.start
    places = iter(offsets)
    starts = tuple(base + next(places) if start is None else start for start in found)
    return Staged(starts, tuple(moves), block)


def fill(views: Sequence[NDArray[Any]], inputs: Sequence[Input]) -> None:
    """Copy inputs into arrays of their layouts, which no text has."""
    for view, given in zip(views, inputs, strict=True):
        if len(given.parts) == 1:
            view[...] = given.parts[0]
        else:
            np.concatenate(given.parts, out=view)


def take(arena: Arena, size_bytes: int) -> Block:
    """A block, raising `Overloaded` where there is no room."""
    block = arena.take(size_bytes)
    if block is None:
        raise Overloaded(
            f"the worker's shared memory has no {size_bytes} bytes left in one piece:"
            f" {arena.free_bytes} of {arena.size_bytes} are free",
            retry_after_s=_RETRY_S,
            hint="ask again when answers under way were taken, or with fewer samples at a time",
        )
    return block


def _whole(name: str, array: NDArray[Any]) -> Input:
    item = layouts.content(array)
    return Input((name, array.dtype.str, array.shape), (item,), layouts.size_of(item))


def _find(arena: Arena, given: Input) -> int | None:
    """Where an input lies in the arena as it is."""
    part = given.parts[0]
    if len(given.parts) > 1 or given.size_bytes <= SMALL_BYTES or not isinstance(part, np.ndarray):
        return None
    return arena.find(part)


def _put(arena: Arena, block: Block, offset: int, given: Input) -> list[tuple[int, int, int]]:
    """Copy an input's parts to their place; the moves that are left to the child."""
    moves = []
    for part in given.parts:
        size = layouts.size_of(part)
        start = None
        if isinstance(part, np.ndarray) and size > SMALL_BYTES:
            start = arena.find(part)
        if start is None:
            layouts.write(block.data, offset, part)
        else:
            moves.append((start, block.start + offset, size))
        offset += size
    return moves
