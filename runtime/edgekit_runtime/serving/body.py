"""Body: the memory that a request's body is received into, where the engine will find it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit_runtime.serving.application import Request
from edgekit_runtime.serving.http import Head

# Any datatype may lie at a multiple of this, and malloc returns nothing else.
_ALIGNMENT = 16
# Up to here a copy into the engine's memory costs less than asking for that memory.
_COPIED_BYTES = 32 << 10


class Body:
    """A body that is on its way.

    Attributes:
        memory: of the whole body, behind padding that lets its first binary tensor lie aligned.
        have: bytes of it that are filled; the next ones belong behind them.

    Args:
        head: of its request.
        begun: what came of it together with the head.
        allocate: gives memory where the engine finds a body; `None` for any other.
    """

    __slots__ = ("_head", "_pad", "have", "memory")

    def __init__(
        self,
        head: Head,
        begun: memoryview,
        *,
        allocate: Callable[[Head, int], memoryview | None],
    ) -> None:
        self._head = head
        self._pad = -(head.json_length or 0) % _ALIGNMENT
        size = self._pad + head.length
        memory = allocate(head, size) if size > _COPIED_BYTES else None
        # Not a bytearray: that would first fill it with zeros.
        self.memory = np.empty(size, dtype=np.uint8).data if memory is None else memory
        self.have = self._pad + len(begun)
        self.memory[self._pad : self.have] = begun

    @property
    def is_whole(self) -> bool:
        """Whether all of it was received."""
        return self.have >= len(self.memory)

    def request(self) -> Request:
        """The request, once the body is whole."""
        head, memory = self._head, self.memory
        json_end = len(memory) if head.json_length is None else self._pad + head.json_length
        json = bytes(memory[self._pad : json_end])
        return Request(head, json, memory, json_end, len(memory) - json_end)
