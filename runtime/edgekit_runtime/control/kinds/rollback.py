"""`rollback`: the version of a model that served before serves again; the updater decides.

What was not begun within the command's limit is not done later.
"""

from __future__ import annotations

from typing import Any

from edgekit.control import Rollback
from edgekit.errors import EngineError
from edgekit_runtime.control.hands import Hands, Wait

_LOOK_S = 0.1


def run(args: Rollback, hands: Hands, wait: Wait) -> dict[str, Any]:
    """`before` and `version`, when the other one serves."""
    before = hands.updates.states().get(args.model)
    hands.updates.rollback(args.model)
    while not wait(_LOOK_S):
        now = hands.updates.states().get(args.model)
        if now is not None and now != before and now.state == "rolled_back":
            return {
                "model": args.model,
                "before": before.version if before else None,
                "version": now.version,
                "reason": now.reason,
            }
    if hands.updates.withdraw(args.model, "rollback"):
        raise EngineError(
            f"{args.model} has not yet gone back, and is asked to no more",
            hint="the device's events say why; ask again",
        )
    raise EngineError(
        f"{args.model} has begun to go back and has not yet",
        hint="edgekit fleet devices shows what serves; the device's events say why",
    )
