"""Roles: who may say what in a fleet's repository, and for how long a word of theirs counts.

    root (2 of 3, offline)
      targets (offline)
        releases (release key)      releases-00 … releases-7f
        candidates (coordinator's key)
      snapshot, timestamp (online)

Bundles are spread over 128 bins by the sha256 of their path (TAP 15), so that a device that asks
for one bundle fetches one bin and not the list of all. `candidates` may name paths below
`candidates/` alone. Root and targets change rarely and outlive a board's winter in a warehouse;
the timestamp is short, because it bounds for how long a device can be held at an old state.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from edgekit.clock import Clock

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = Root.type, Targets.type, Snapshot.type, Timestamp.type
RELEASES = "releases"
CANDIDATES = "candidates"
ROOT_THRESHOLD = 2
BIN_BITS = 7
# One * stands for one part of a path: "candidates/a/1.0.0/p.edge" does not match the first.
RELEASE_PATHS = ("*/*/*",)
CANDIDATE_PATHS = ("candidates/*/*/*",)

# When the timestamp was signed, in milliseconds since 1970 UTC: proof that it is at least so late.
SIGNED_AT = "x-edgekit-signed-at-ms"

_DAYS = {ROOT: 5 * 365, TARGETS: 3 * 365, RELEASES: 2 * 365, CANDIDATES: 365, SNAPSHOT: 30}
_TIMESTAMP_DAYS = 7


def valid_for(role: str) -> timedelta:
    """How long metadata of a role counts after it was signed."""
    if role.startswith(f"{RELEASES}-"):
        role = RELEASES
    return timedelta(days=_DAYS.get(role, _TIMESTAMP_DAYS))


def now(clock: Clock) -> datetime:
    """The time in UTC, in whole seconds as metadata carries it."""
    return datetime.fromtimestamp(clock.now_ms() // 1000, tz=timezone.utc)


def is_due(role: str, expires: datetime, *, at: datetime) -> bool:
    """Whether metadata should be signed again: half of its time is over."""
    return expires - at < valid_for(role) / 2
