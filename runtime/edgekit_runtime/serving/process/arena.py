"""Arena: memory that parent and child both see, and that arrays are made of without a copy.

It is an anonymous file (memfd), not a name in `/dev/shm`: nobody else can open it, a full or absent
`/dev/shm` does not matter, and it is gone with the last process that maps it. It is sealed, so that
no process can shrink it under the other. Only the parent hands out blocks; a block is free again
when the last array or memoryview upon it is gone, in whichever thread that happens.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.serving.process.space import Space

# Of a cache line: any datatype may lie there, and vector loads cross no line.
ALIGNMENT = 64
_PAGE = mmap.PAGESIZE
_KEPT_BYTES = 1 << 20


def aligned(size_bytes: int) -> int:
    """The next multiple of `ALIGNMENT`, at least one."""
    return -(-max(size_bytes, 1) // ALIGNMENT) * ALIGNMENT


class Block(np.ndarray[Any, np.dtype[np.uint8]]):
    """Bytes of an arena, which get them back when it ends.

    numpy makes the owner of memory the base of every view upon it, and of a view of a view, unless
    that owner is a plain array: hence a class of its own. Make arrays of it with
    `np.ndarray(shape, dtype, block, offset)`; a slice of it is a `Block` that owns nothing.

    Attributes:
        start: where in the arena.
        give_back: what to tell when it ends; `None` for what owns nothing.
    """

    start = 0
    # A finalizer does the same at twice the cost (`benchmarks/serving/process_memory.py`).
    give_back: Callable[[int], None] | None = None

    def __del__(self) -> None:
        if self.give_back is not None:
            self.give_back(self.start)


class Arena:
    """The parent's side. Blocks are taken by one thread at a time and may end in any.

    Args:
        size_bytes: of address space; pages are taken when they are first written to.

    Attributes:
        memory: all of it.
        descriptor: of the memfd, for the child; `close_descriptor` when it has it.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.descriptor = os.memfd_create("edgekit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self.memory = mmap.mmap(self.descriptor, size_bytes)
        except BaseException:
            self.close_descriptor()
            raise
        whole = np.frombuffer(self.memory, np.uint8)
        self._address = int(whole.ctypes.data)
        self._space = Space(size_bytes)
        self._sizes: dict[int, int] = {}
        # A block may end while another is taken, even in the same thread when garbage is collected:
        # so its end only leaves a note.
        self._ended: deque[int] = deque()
        self._touched_bytes = 0

    @property
    def free_bytes(self) -> int:
        """What no block holds, not necessarily in one piece."""
        self._collect()
        return self._space.free_bytes

    def take(self, size_bytes: int) -> Block | None:
        """A block of so many bytes, whatever they hold; `None` where there is no room."""
        self._collect()
        size = aligned(size_bytes)
        start = self._space.take(size)
        if start is None:
            return None
        self._sizes[start] = size
        self._touched_bytes = max(self._touched_bytes, start + size)
        block = np.ndarray.__new__(Block, (size_bytes,), np.uint8, self.memory, start)
        block.start = start
        block.give_back = self._ended.append
        return block

    def find(self, array: NDArray[Any]) -> int | None:
        """Where a contiguous array lies in this arena; `None` where it does not."""
        start = int(array.__array_interface__["data"][0]) - self._address
        if 0 <= start < self.size_bytes and array.flags.c_contiguous:
            return start
        return None

    def trim(self) -> None:
        """Give the pages of what is free back to the system."""
        if self._touched_bytes <= _KEPT_BYTES:
            return
        self._collect()
        self._touched_bytes = self.size_bytes
        for start, end in self._space.free():
            first, last = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
            if first < last:
                self.memory.madvise(mmap.MADV_REMOVE, first, last - first)
            if end == self.size_bytes:
                self._touched_bytes = start

    def close(self) -> None:
        """Hand out nothing more. The memory goes with the last array upon it."""
        self.close_descriptor()
        self.size_bytes = self._touched_bytes = 0
        self._space = Space(0)
        self._ended = deque()
        del self.memory

    def close_descriptor(self) -> None:
        """The child has its own by now."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _collect(self) -> None:
        while self._ended:
            start = self._ended.popleft()
            self._space.give(start, self._sizes.pop(start))
