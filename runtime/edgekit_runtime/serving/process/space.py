"""Space: which bytes of a range are free. Pure: the memory itself is `arena`'s.

First fit, lowest address first, so that what is in use stays together and few pages are touched;
what is given back joins its free neighbours at once (Knuth, TAOCP 1, 2.5).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class Space:
    """Free and taken ranges of `[0, size)`.

    Args:
        size: of the whole range, in bytes.
    """

    def __init__(self, size: int) -> None:
        # Free ranges by rising start; no two touch.
        self._starts = [0]
        self._ends = [size]
        self.free_bytes = size

    def take(self, size: int) -> int | None:
        """The start of a range of `size` > 0 bytes that is taken from now on; `None` if none is."""
        for index, start in enumerate(self._starts):
            end = start + size
            if end <= self._ends[index]:
                self.free_bytes -= size
                if end < self._ends[index]:
                    self._starts[index] = end
                else:
                    del self._starts[index], self._ends[index]
                return start
        return None

    def give(self, start: int, size: int) -> None:
        """Free a range that `take` gave, whole."""
        starts, ends = self._starts, self._ends
        index, end = bisect_left(starts, start), start + size
        self.free_bytes += size
        if index and ends[index - 1] == start:
            index -= 1
            ends[index] = end
        else:
            starts.insert(index, start)
            ends.insert(index, end)
        if index + 1 < len(starts) and starts[index + 1] == end:
            ends[index] = ends.pop(index + 1)
            del starts[index + 1]

    def free(self) -> Iterator[tuple[int, int]]:
        """Start and end of each free range, rising."""
        return zip(self._starts, self._ends, strict=True)
