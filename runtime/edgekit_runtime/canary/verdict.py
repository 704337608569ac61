"""Verdict: how a canary ended, with the figures that it rests on."""

from __future__ import annotations

from typing import Literal

from edgekit.structs import Strict
from edgekit_runtime.update.reasons import Reason

Decision = Literal["promote", "roll_back", "undecided"]


class Verdict(Strict, frozen=True, kw_only=True):
    """How a canary ended.

    Attributes:
        decision: `undecided` where nothing could be compared: no room, no live inputs, other
            inputs than the old version's. The version then goes on under supervision.
        reason: why it is rolled back; `None` else.
        figures: what was measured, by name (docs/canary.md); lists of words stand in `detail`.
        detail: the same for people, in one line.
    """

    decision: Decision
    reason: Reason | None = None
    figures: dict[str, float | int] = {}
    detail: str
