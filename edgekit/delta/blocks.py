"""Blocks: operations cut into blocks, each with its payload compressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import zstandard

from edgekit.delta import planes
from edgekit.delta.form import (
    BLOCK_BYTES,
    BYTES,
    COPY,
    LITERAL,
    MAX_CONTROL_BYTES,
    SPARSE,
    WIDTHS,
    BlockHead,
    Operation,
    encode_operations,
)

_LEVEL = 22
_OPERATION_BYTES = 24
"""More control bytes than one operation takes."""


def blocks(operations: Sequence[Operation], *, new: memoryview, old: memoryview) -> Iterator[bytes]:
    """The blocks, with their heads, that make `new` from `old` by these operations."""
    position = 0
    for group in _groups(operations):
        yield _block(group, new[position:], old)
        position += sum(operation.length for operation in group)


def _groups(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Operations of one block each, cut where a block is full."""
    group: list[Operation] = []
    room = BLOCK_BYTES
    for operation in operations:
        left, old, width = operation.length, operation.old, WIDTHS.get(operation.kind, 1)
        while left:
            count = min(left, room - room % width)
            if not count or (len(group) + 1) * _OPERATION_BYTES > MAX_CONTROL_BYTES:
                yield group
                group, room = [], BLOCK_BYTES
                continue
            group.append(Operation(operation.kind, count, old))
            room, left = room - count, left - count
            old += 0 if operation.kind == LITERAL else count
    if group:
        yield group


def _block(operations: Sequence[Operation], new: memoryview, old: memoryview) -> bytes:
    done = []
    literals, gaps, values = bytearray(), bytearray(), bytearray()
    folded: dict[int, list[planes.Unsigned]] = {kind: [] for kind in WIDTHS}
    position = 0
    for operation in operations:
        kind, length, place = operation[:3]
        data, before = new[position : position + length], old[place : place + length]
        position += length
        if kind != LITERAL and data == before:
            # What is left of a difference that a full block cut in two.
            kind = COPY
        if kind == SPARSE:
            steps = planes.sparse(planes.differences(data, before, 1))
            if len(steps[0]) + len(steps[1]) <= length:
                gaps += steps[0]
                values += steps[1]
                done.append(Operation(kind, length, place, len(steps[0]), len(steps[1])))
                continue
            kind = BYTES
        if kind == LITERAL:
            literals += data
        elif kind != COPY:
            folded[kind].append(planes.differences(data, before, WIDTHS[kind]))
        done.append(Operation(kind, length, place))
    control = encode_operations(done)
    sections = (planes.split(planes.joined(folded[kind], w)) for kind, w in WIDTHS.items())
    payload = b"".join((control, literals, *sections, gaps, values))
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(payload)
    head = BlockHead(position, len(control), len(payload), len(packed))
    return head.encode() + packed
