"""Update: the life of a new bundle on a device, as values and rules.

    idle -> fetching -> verifying -> staged -> probing -> canary -> active -> confirmed
                                                          canary, active, confirmed -> rolled_back
            any state may end in failed; one before active also because it was cancelled

Promise: whatever happens between two records, the device can go on from the last one, and the
active slot is never the one that is written to. Nothing here touches the disk, the network or a
clock: `updater` writes each record before it acts on it.

Map: `reasons` (codes), `record` (what is on disk, the table of moves), `rules` (what follows).
"""

from __future__ import annotations

from edgekit_runtime.update.reasons import MEANING, Reason, UpdateFailed, disk_reason
from edgekit_runtime.update.record import (
    REPLACEABLE,
    STEPS,
    UNDER_WAY,
    Installed,
    Record,
    SlotName,
    State,
    Step,
    Update,
)
from edgekit_runtime.update.rules import (
    MAX_ATTEMPTS,
    MAX_DOWNLOADS,
    activated,
    advanced,
    again,
    at_start,
    begin,
    cancelled,
    check,
    cleared,
    failed,
    fetched,
    holds_wanted,
    judge,
    judged_worse,
    limit,
    lost,
    measured,
    model_state,
    move,
    rolled_back,
    settled,
    staged,
)

__all__ = [
    "MAX_ATTEMPTS",
    "MAX_DOWNLOADS",
    "MEANING",
    "REPLACEABLE",
    "STEPS",
    "UNDER_WAY",
    "Installed",
    "Reason",
    "Record",
    "SlotName",
    "State",
    "Step",
    "Update",
    "UpdateFailed",
    "activated",
    "advanced",
    "again",
    "at_start",
    "begin",
    "cancelled",
    "check",
    "cleared",
    "disk_reason",
    "failed",
    "fetched",
    "holds_wanted",
    "judge",
    "judged_worse",
    "limit",
    "lost",
    "measured",
    "model_state",
    "move",
    "rolled_back",
    "settled",
    "staged",
]
