"""Look: whether to look for an answer for a while before sleeping until it comes.

An answer of microseconds is there sooner than a sleeping program is woken, and waking it costs the
server more than the model does. Looking uses a core meanwhile, so it is done less often each time
that it was in vain, and again as soon as it was not.
"""

from __future__ import annotations

LONGEST_REST = 1024


class Look:
    """Decides before each answer, and learns from each look.

    Args:
        limit_us: how long one look may take; 0 never looks.
    """

    def __init__(self, limit_us: int) -> None:
        self.limit_ns = limit_us * 1000
        self._rest = 0
        self._next_rest = 1

    def is_due(self) -> bool:
        """Whether to look for the next answer; ask once for each."""
        if self._rest:
            self._rest -= 1
            return False
        return self.limit_ns > 0

    def found(self) -> None:
        """The answer came while looking."""
        self._next_rest = 1

    def missed(self) -> None:
        """It did not: rest for one answer, for two the next time, and so on."""
        self._rest = self._next_rest
        self._next_rest = min(2 * self._next_rest, LONGEST_REST)
