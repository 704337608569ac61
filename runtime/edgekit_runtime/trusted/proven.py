"""Proven: the newest state and time that signed metadata has shown to this device.

TUF's library refuses what is older than the files it kept. Those files can be damaged, and then it
begins anew; this mark is a second, checked copy of what must not go back. It is written whole and
synced after each success, so that a power cut leaves the one before.

- A root, timestamp or snapshot with a lower version is refused.
- A timestamp says when it was signed. A board's clock that is behind that is wrong, so expiry is
  judged by the later of the two. A clock that is ahead leaves no trace here: nothing but a
  signature proves a time, and a board that once believed in 2040 would refuse everything for ever.
- Where the online key was exchanged by a new root, what the old key said no longer counts: a thief
  may have signed for a version or a year that nobody reaches (TUF specification, 5.3.11).
- Where the mark is damaged too, the device is as it was on the day it was enrolled: it takes any
  state that has not expired. The signed desired state still names the bundle's digest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from edgekit import storage
from edgekit.manifest import canonical
from edgekit.structs import Strict

FILE = "proven.json"
_MAX_BYTES = 16 << 10


class Proven(Strict, frozen=True, kw_only=True):
    """What has been proven.

    Attributes:
        at_ms: milliseconds since 1970 UTC that it is at least.
        root: version; so `timestamp` and `snapshot`.
        keys: ids of the keys that may sign timestamps, in order.
    """

    at_ms: int = 0
    root: int = 1
    timestamp: int = 0
    snapshot: int = 0
    keys: tuple[str, ...] = ()

    def older(self, seen: Proven) -> str | None:
        """Which part of `seen` is older than this, in words; `None` where none is."""
        names = ["root"] if self.keys != seen.keys else ["root", "timestamp", "snapshot"]
        for name in names:
            before, now = getattr(self, name), getattr(seen, name)
            if now < before:
                return f"{name} has version {now}, this device has seen {before}"
        return None

    def and_(self, seen: Proven) -> Proven:
        """This and what was seen now, which is not `older`."""
        if self.keys != seen.keys:
            return seen
        return msgspec.structs.replace(seen, at_ms=max(self.at_ms, seen.at_ms))


class _Kept(Strict, frozen=True, kw_only=True):
    proven: Proven
    sha256: str


def read(folder: Path) -> Proven:
    """What was proven before; nothing where there is no file or a damaged one."""
    try:
        with (folder / FILE).open("rb") as file:
            kept = msgspec.json.decode(file.read(_MAX_BYTES), type=_Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Proven()
    return kept.proven if kept.sha256 == _sha256(kept.proven) else Proven()


def write(folder: Path, proven: Proven) -> None:
    """Keep it, raising `StorageError` where the disk does not take it."""
    kept = _Kept(proven=proven, sha256=_sha256(proven))
    storage.write(folder / FILE, msgspec.json.encode(kept))


def _sha256(proven: Proven) -> str:
    return hashlib.sha256(canonical(proven)).hexdigest()
