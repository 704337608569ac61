"""Sweep: metadata that no device can ask for any more is removed, so that a repository stays small.

Promise: whatever a timestamp names that has not expired is there, so a device in the middle of a
look, or behind a mirror or cache that is late, finds all of it. Every root stays: a device that
slept for years follows them one by one. Targets are never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Snapshot

from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.tuf import roles
from edgekit.fleet.tuf.editor import Editor

log = logging.getLogger(__name__)


class Name(NamedTuple):
    """What a file of metadata is called: `VERSION.ROLE.json`."""

    version: int
    role: str

    @property
    def file(self) -> str:
        return f"{self.version}.{self.role}.json"


def sweep(folder: FleetFolder, editor: Editor) -> int:
    """Remove what is needed no more; how many files. Called under `locked`, after `commit`.

    What cannot be removed is logged: the change that came before counts all the same.
    """
    present = list(_present(folder.metadata))
    snapshots = dict(_snapshots(folder.metadata, present))
    signed = {version: signed_at(snapshot) for version, snapshot in snapshots.items()}
    current = editor.timestamp.signed.snapshot_meta.version
    kept: set[Name] = set()
    for version in needed(signed, current=current, now=editor.now):
        kept.add(Name(version, roles.SNAPSHOT))
        for file, meta in snapshots[version].meta.items():
            kept.add(Name(meta.version, file.removesuffix(".json")))
    removed = 0
    for name in removable(present, kept):
        try:
            (folder.metadata / name.file).unlink(missing_ok=True)
        except OSError as e:
            log.warning("old metadata cannot be removed: %s", e)
            break
        removed += 1
    return removed


def needed(signed: Mapping[int, datetime], *, current: int, now: datetime) -> set[int]:
    """Snapshots that a timestamp may name which has not expired.

    A timestamp names the latest snapshot, so those that name an older one were signed before the
    one after it was. Where the clock went back in between, the later of both counts.

    Args:
        signed: when each snapshot that is there was signed, by version.
        current: the version that the present timestamp names.
    """
    found = {current}
    known = sorted(version for version in signed if version <= current)
    for version, after in pairwise(known):
        last_named = max(signed[version], signed[after])
        if last_named + roles.valid_for(roles.TIMESTAMP) >= now:
            found.add(version)
    return found


def removable(present: Iterable[Name], kept: set[Name]) -> list[Name]:
    """What of the files there may go.

    A file of targets metadata above all that are kept never came to count, for its writer was
    killed. It stays until a higher version counts: its version must not be given again.
    """
    targets = [name.version for name in kept if name.role != roles.SNAPSHOT]
    highest = max(targets, default=0)
    return [
        name
        for name in present
        if name not in kept
        and name.role != roles.ROOT
        and (name.role == roles.SNAPSHOT or name.version < highest)
    ]


def signed_at(snapshot: Snapshot) -> datetime:
    """When a snapshot was signed: its end, less the time for which it was signed."""
    return snapshot.expires.replace(tzinfo=timezone.utc) - roles.valid_for(roles.SNAPSHOT)


def _present(metadata: Path) -> Iterator[Name]:
    for path in metadata.glob("[0-9]*.*.json"):
        version, _, role = path.name.removesuffix(".json").partition(".")
        if version.isdecimal():
            yield Name(int(version), role)


def _snapshots(metadata: Path, present: Iterable[Name]) -> Iterator[tuple[int, Snapshot]]:
    """The snapshots that can be read; no device believes the others."""
    for name in present:
        if name.role == roles.SNAPSHOT:
            try:
                raw = (metadata / name.file).read_bytes()
                yield name.version, Metadata[Snapshot].from_bytes(raw).signed
            except (OSError, RepositoryError) as e:
                log.warning("an old snapshot cannot be read: %s", e, extra={"file": name.file})
