"""Outcome: what came of a command, and the message that says it."""

from __future__ import annotations

from typing import Any, NamedTuple

from edgekit import control
from edgekit.control import CommandResult, State

_MOST_DETAIL = 2000


class Outcome(NamedTuple):
    """What came of a command; `reason` is a code, `detail` the same for people."""

    state: State
    reason: str | None = None
    detail: str = ""
    output: dict[str, Any] | None = None


def result(
    number: str,
    outcome: Outcome,
    *,
    boot: str,
    at: int,
    counter: int,
    took_ms: int | None = None,
) -> CommandResult:
    """The message.

    Args:
        number: id of the command.
        outcome: its output is at most `control.MAX_OUTPUT_BYTES`.
        boot: of this start.
        at: this board's clock, milliseconds since 1970 UTC.
        counter: highest that was taken.
        took_ms: how long it ran.
    """
    output, squeezed = None, None
    if outcome.output is not None:
        output, squeezed = control.packed(outcome.output)
    return CommandResult(
        id=number,
        boot=boot,
        at=at,
        state=outcome.state,
        counter=counter,
        reason=outcome.reason,
        detail=outcome.detail[:_MOST_DETAIL],
        took_ms=took_ms,
        output=output,
        packed=squeezed,
    )
