"""`cancel`: the update of a model that is under way ends; what serves goes on serving."""

from __future__ import annotations

from typing import Any

from edgekit.control import Cancel
from edgekit.errors import EngineError
from edgekit_runtime.control.hands import Hands, Wait

_LOOK_S = 0.1


def run(args: Cancel, hands: Hands, wait: Wait) -> dict[str, Any]:
    """`state` and `reason` of the update, when it has ended; it may have ended well before."""
    hands.updates.cancel(args.model)
    while not wait(_LOOK_S):
        now = hands.updates.states().get(args.model)
        if now is not None and now.state in ("failed", "rolled_back", "confirmed", "idle"):
            return {
                "model": args.model,
                "state": now.state,
                "reason": now.reason,
                "version": now.version,
                "target": now.target,
            }
    if hands.updates.withdraw(args.model, "cancel"):
        raise EngineError(
            f"the update of {args.model} has not yet ended, and is asked to no more",
            hint="edgekit fleet devices shows its state; ask again",
        )
    raise EngineError(
        f"the update of {args.model} has begun to end and has not yet",
        hint="edgekit fleet devices shows its state",
    )
