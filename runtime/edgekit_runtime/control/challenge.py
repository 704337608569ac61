"""Challenge: a number that only this device knew until it asked, so that an answer must be new."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.clock import Clock

# Time for one question and one answer over a slow link; never measured by the wall clock.
LIFE_S = 120.0


class Challenge:
    """At most one open challenge.

    Args:
        clock: its monotonic time alone counts.
        draw: gives a nonce nobody can guess.
    """

    def __init__(self, *, clock: Clock, draw: Callable[[], str]) -> None:
        self._clock = clock
        self._draw = draw
        self._nonce: str | None = None
        self._until_s = 0.0

    @property
    def open(self) -> str | None:
        """The one that may still be answered."""
        return self._nonce if self._clock.monotonic() < self._until_s else None

    def ask(self) -> str:
        """The one to be answered; drawn anew where none is open, so that repeats agree."""
        if self.open is None or self._nonce is None:
            self._nonce = self._draw()
            self._until_s = self._clock.monotonic() + LIFE_S
        return self._nonce

    def spend(self) -> None:
        """It was answered; it is not taken again."""
        self._nonce = None
