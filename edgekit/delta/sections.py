"""Sections: the payload of a block behind its operations, and what each operation takes of it.

In this order: literals, differences of 1, 2, 4 and 8 bytes as planes, gaps, values. Each operation
takes the next bytes, or elements, of its section.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.delta import planes
from edgekit.delta.form import LITERAL, SPARSE, WIDTHS, Operation, damaged


class Sections:
    """Hands out the sections of one block.

    Args:
        operations: of the block.
        raw: its payload behind them.

    Raises:
        DeltaError: the payload has another size than the operations need.
    """

    def __init__(self, operations: Sequence[Operation], raw: memoryview) -> None:
        sizes = {kind: _total(operations, kind) for kind in (LITERAL, *WIDTHS)}
        gaps = sum(operation.gaps for operation in operations)
        values = sum(operation.values for operation in operations)
        if sum(sizes.values()) + gaps + values != len(raw):
            raise damaged("the payload of a block has another size than its operations need")
        sections: dict[int, memoryview] = {}
        for kind, size in sizes.items():
            sections[kind], raw = raw[:size], raw[size:]
        self._literals = sections[LITERAL]
        self._folded = {kind: planes.merge(sections[kind], WIDTHS[kind]) for kind in WIDTHS}
        self._gaps, self._values = raw[:gaps], raw[gaps:]

    def literal(self, operation: Operation) -> memoryview:
        """The bytes of the next literal."""
        length = operation.length
        taken, self._literals = self._literals[:length], self._literals[length:]
        return taken

    def folded(self, operation: Operation) -> planes.Unsigned:
        """The folded differences of the next operation of its kind.

        Raises:
            DeltaError: it is sparse, and its gaps do not fit.
        """
        if operation.kind == SPARSE:
            return self._sparse(operation)
        count = operation.length // WIDTHS[operation.kind]
        left = self._folded[operation.kind]
        taken, self._folded[operation.kind] = left[:count], left[count:]
        return taken

    def _sparse(self, operation: Operation) -> planes.Unsigned:
        gaps, self._gaps = self._gaps[: operation.gaps], self._gaps[operation.gaps :]
        values, self._values = self._values[: operation.values], self._values[operation.values :]
        try:
            return planes.dense(gaps, values, operation.length)
        except ValueError as e:
            raise damaged(f"few bytes differ, but {e}") from e


def _total(operations: Sequence[Operation], kind: int) -> int:
    return sum(operation.length for operation in operations if operation.kind == kind)
