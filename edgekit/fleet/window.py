"""Window: which messages of one boot of a device are stored, and how far they may be acknowledged.

An acknowledgement is cumulative: it says that everything up to a number is stored for good, so it
never passes a gap. Numbers below a message's `floor` will not come any more and make no gap.
"""

from __future__ import annotations

from typing import Literal

# A device that jumps further ahead than this is not stored: the set above the gap stays bounded.
MAX_AHEAD = 100_000

Verdict = Literal["new", "duplicate", "too_far"]


class Window:
    """The numbers stored of one (device, boot).

    Args:
        acked: everything up to here is stored, or will never come.
        above: numbers beyond `acked` that are stored, with gaps before them.
    """

    def __init__(self, acked: int = 0, above: set[int] | None = None) -> None:
        self.acked = acked
        self._above = above if above is not None else set()
        self._close()
        # The highest number that has come, or that will not come any more.
        self.highest = max(self._above, default=self.acked)

    def take(self, seq: int, *, floor: int) -> Verdict:
        """Note a message; only a `new` one is to be stored."""
        self._skip_to(min(floor, seq) - 1)
        if seq <= self.acked or seq in self._above:
            return "duplicate"
        if seq > self.acked + MAX_AHEAD:
            return "too_far"
        self._above.add(seq)
        self._close()
        self.highest = max(self.highest, seq)
        return "new"

    def _skip_to(self, seq: int) -> None:
        if seq > self.acked:
            self.acked = seq
            self._above = {item for item in self._above if item > seq}
            self._close()

    def _close(self) -> None:
        while self.acked + 1 in self._above:
            self.acked += 1
            self._above.remove(self.acked)
