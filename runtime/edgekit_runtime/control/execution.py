"""Execution: a command that counts, checked against what this board allows, and carried out.

Promise: whatever comes of it, it is an outcome, with a reason that an operator can act on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from edgekit import control
from edgekit.clock import Clock
from edgekit.control import KINDS, Command, Kind
from edgekit.errors import EdgekitError, NotServed, Overloaded, StorageError, UsageError
from edgekit.structs import Strict
from edgekit_runtime.control.hands import Hands
from edgekit_runtime.control.kinds import Work
from edgekit_runtime.control.outcome import Outcome
from edgekit_runtime.control.runner import Runner, TimeLimit
from edgekit_runtime.control.settings import CommandsSection

log = logging.getLogger(__name__)

# The first class that an error is an instance of gives its reason.
_REASONS: tuple[tuple[type[EdgekitError], str], ...] = (
    (TimeLimit, "time_limit"),
    (Overloaded, "busy"),
    (NotServed, "not_served"),
    (StorageError, "storage"),
    (UsageError, "not_possible"),
    (EdgekitError, "error"),
)


class Execution:
    """Carries commands out, one at a time, for one thread.

    Args:
        settings: what may be asked.
        hands: what commands may reach.
        table: what each kind does.
        clock: for limits.
    """

    def __init__(
        self, settings: CommandsSection, hands: Hands, table: Mapping[Kind, Work], *, clock: Clock
    ) -> None:
        self._settings = settings
        self._hands = hands
        self._table = table
        self._runner = Runner(clock=clock)

    def close(self) -> None:
        """Tell what runs to end; from any thread."""
        self._runner.close()

    def run(self, command: Command) -> Outcome:
        """Carry out a command, or say why not."""
        kind = next((kind for kind in KINDS if kind == command.kind), None)
        if kind is None:
            return Outcome("refused", "unknown_kind", f"this device knows {', '.join(KINDS)}")
        if not self._settings.enabled or kind not in self._settings.allow:
            return Outcome("refused", "not_allowed", f"[commands] does not allow {kind} here")
        try:
            args = control.arguments(kind, command.args)
        except UsageError as e:
            return Outcome("refused", "bad_arguments", e.with_hint)
        try:
            return self._work(kind, args, command)
        except EdgekitError as e:
            reason = next(reason for known, reason in _REASONS if isinstance(e, known))
            return Outcome("failed", reason, e.with_hint)
        except Exception as e:  # it ends, and is answered; the daemon goes on
            log.exception("command failed", extra={"id": command.id, "kind": kind})
            return Outcome("failed", "internal", f"{type(e).__name__}: {e}; the log has more")

    def _work(self, kind: Kind, args: Strict, command: Command) -> Outcome:
        own_s = self._settings.limit_s
        work = self._table[kind]
        output = self._runner.run(
            lambda wait: work(args, self._hands, wait),
            limit_s=min(own_s, command.limit_s or own_s),
            name=f"command-{kind}-{command.id}",
        )
        control.packed(output)  # raises where it is too large to be told
        return Outcome("done", output=output)
