"""Plan: how one entry of a new bundle is made from the old one.

Tensors are set against the tensors of their name, what lies between two tensors against what lay
between them, and the rest against whatever is alike anywhere in the old bundle. For each stretch
the cheapest form is chosen by trying them: copied, differences of elements or of bytes, or the
bytes themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import zstandard

from edgekit.delta import planes
from edgekit.delta.form import BYTES, COPY, LITERAL, SPARSE, WIDTHS, Operation
from edgekit.delta.layouts import tensors_of
from edgekit.delta.matches import Index

_TRIAL_LEVEL = 3
_KINDS = {width: kind for kind, width in WIDTHS.items()}
# Shorter differences cost more than the operation that begins them.
_LEAST_BYTES = 8
# Where at most this share of a chunk differs, gaps are set against differences.
_CHUNK_BYTES, _FEW = 512, 0.15


class Run(NamedTuple):
    """Bytes of an entry of the old bundle, and where they begin in all of it."""

    data: memoryview
    start: int


class _Stretch(NamedTuple):
    """New bytes from `new` to `end`, and the old ones they are set against, if any."""

    new: int
    end: int
    old: int | None = None
    width: int = 1


class Planner:
    """Plans entries against one old bundle.

    Args:
        old: all its bytes.
    """

    def __init__(self, old: bytes) -> None:
        self._old = memoryview(old)
        self._index = Index(np.frombuffer(old, np.uint8))

    def operations(self, name: str, new: memoryview, before: Run | None) -> list[Operation]:
        """What makes the bytes of an entry, in order.

        Args:
            name: of the entry.
            new: its bytes.
            before: the old bundle's entry of that name.
        """
        if before is not None and new == before.data:
            return [Operation(COPY, len(new), before.start)] if len(new) else []
        stretches = self._against(name, new, before)
        return _joined(chain.from_iterable(self._cheapest(new, one) for one in stretches))

    def _against(self, name: str, new: memoryview, before: Run | None) -> Iterator[_Stretch]:
        """Stretches that cover an entry."""
        done = place = 0
        if before is not None:
            earlier = tensors_of(name, before.data)
            for key, tensor in tensors_of(name, new).items():
                was = earlier.get(key)
                if was is None or was.size != tensor.size or tensor.offset < done:
                    continue
                yield from self._between(new, before, (done, tensor.offset), (place, was.offset))
                old = before.start + was.offset
                done, place = tensor.offset + tensor.size, was.offset + was.size
                yield _Stretch(tensor.offset, done, old, tensor.width)
            yield from self._between(new, before, (done, len(new)), (place, len(before.data)))
        else:
            yield from self._anywhere(new, 0, len(new))

    def _between(
        self, new: memoryview, before: Run, span: tuple[int, int], was: tuple[int, int]
    ) -> Iterator[_Stretch]:
        """What lies between two tensors, where possible against what lay there."""
        if span[0] and span[1] - span[0] == was[1] - was[0]:
            yield _Stretch(*span, before.start + was[0])
        else:
            yield from self._anywhere(new, *span)

    def _anywhere(self, new: memoryview, begin: int, end: int) -> Iterator[_Stretch]:
        """Stretches against whatever is alike anywhere in the old bundle."""
        done = begin
        for match in self._index.matches(np.frombuffer(new[begin:end], np.uint8)):
            start = begin + match.new
            yield _Stretch(done, start)
            done = start + match.length
            yield _Stretch(start, done, match.old)
        yield _Stretch(done, end)

    def _cheapest(self, new: memoryview, stretch: _Stretch) -> list[Operation]:
        data = new[stretch.new : stretch.end]
        literal = Operation(LITERAL, len(data), 0)
        if stretch.old is None:
            return [literal]
        old = self._old[stretch.old : stretch.old + len(data)]
        if data == old:
            return [Operation(COPY, len(data), stretch.old)]
        if len(data) < _LEAST_BYTES:
            return [literal]
        forms = {LITERAL: _size(data)}
        for width in {1, stretch.width}:
            if len(data) % width == 0:
                folded = planes.differences(data, old, width)
                forms[_KINDS[width]] = _size(planes.split(folded))
        bytewise = planes.differences(data, old, 1)
        pieces = _pieces(bytewise, stretch.old)
        forms[SPARSE] = sum(_size(form) for form in _mixed(bytewise, pieces))
        # Of equals the widest: what many small stretches share shows in none of them alone.
        kind = min(forms, key=lambda kind: (forms[kind], -kind))
        if kind == SPARSE:
            return pieces
        return [literal if kind == LITERAL else Operation(kind, len(data), stretch.old)]


def _pieces(folded: planes.Unsigned, old: int) -> list[Operation]:
    """Operations for differences of bytes: sparse where few chunks differ, else as they are."""
    counts = np.add.reduceat(folded != 0, np.arange(0, len(folded), _CHUNK_BYTES), dtype=np.int64)
    few = counts <= _CHUNK_BYTES * _FEW
    edges = [0, *(np.flatnonzero(few[1:] != few[:-1]) + 1).tolist(), len(few)]
    pieces = []
    for first, last in pairwise(edges):
        start, end = first * _CHUNK_BYTES, min(last * _CHUNK_BYTES, len(folded))
        kind = SPARSE if few[first] else BYTES
        pieces.append(Operation(kind, end - start, old + start))
    return pieces


def _mixed(folded: planes.Unsigned, pieces: Sequence[Operation]) -> tuple[bytes, bytes, bytes]:
    """What pieces put into their sections: gaps, values, and differences of bytes."""
    kinds = np.repeat([piece.kind for piece in pieces], [piece.length for piece in pieces])
    return (*planes.sparse(folded[kinds == SPARSE]), folded[kinds == BYTES].tobytes())


def _joined(operations: Iterator[Operation]) -> list[Operation]:
    """Operations with those made one that go on where the one before ended."""
    joined: list[Operation] = []
    for operation in operations:
        if not operation.length:
            continue
        if joined and joined[-1].kind == operation.kind:
            kind, length, old = joined[-1][:3]
            if kind == LITERAL or old + length == operation.old:
                joined[-1] = Operation(kind, length + operation.length, old)
                continue
        joined.append(operation)
    return joined


def _size(form: bytes | memoryview) -> int:
    return len(zstandard.ZstdCompressor(level=_TRIAL_LEVEL).compress(form))
