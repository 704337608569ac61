"""Parts: what telemetry tells only where it changed, and again every hour.

Rule: a message names, for each part, the message of this boot that carried it as it is now. So a
reader that never got that message knows that it does not know; after `AGAIN_S` at the latest it
does again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgekit.messages import Part

AGAIN_S = 3600.0


class _Known(NamedTuple):
    """What was told last, by which message, and when."""

    body: object
    seq: int
    at_s: float


class Parts:
    """Remembers which message told what."""

    def __init__(self) -> None:
        self._known: dict[Part, _Known] = {}

    def tell(self, bodies: Mapping[Part, object], *, seq: int, now_s: float) -> dict[Part, int]:
        """For each part the message that tells it: `seq` itself, or the one that did before.

        Args:
            bodies: the parts as they are now, in what is to be compared.
            seq: of the message that is being made.
            now_s: on a clock that does not step.
        """
        for part, body in bodies.items():
            known = self._known.get(part)
            if known is None or known.body != body or now_s - known.at_s >= AGAIN_S:
                self._known[part] = _Known(body, seq, now_s)
        return {part: self._known[part].seq for part in bodies}

    def forget(self) -> None:
        """A message that told something is lost: tell everything again."""
        self._known.clear()
