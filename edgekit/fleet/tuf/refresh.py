"""Refresh: metadata is signed again before it expires, by whichever keys are here.

The online and the coordinator's key are always with a coordinator, which does this by itself. The
offline keys come back once in years; until then `Refreshed.waiting` says what waits for which key.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner

from edgekit.clock import Clock
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.tuf import roles, rotate, signers
from edgekit.fleet.tuf.editor import Editor, locked
from edgekit.fleet.tuf.sweep import sweep


class Refreshed(msgspec.Struct, frozen=True, kw_only=True):
    """What was signed again, and what is still to be.

    Attributes:
        signed: roles that were; each bin under its own name.
        waiting: roles that are due and whose key is not here, with the time they expire.
        expires: of the timestamp: when devices stop believing what they are shown.
        removed: files of old metadata that no device can ask for any more.
    """

    signed: tuple[str, ...]
    waiting: dict[str, datetime]
    expires: datetime
    removed: int = 0


def refresh(folder: FleetFolder, *, clock: Clock, every: bool = False) -> Refreshed:
    """Sign again what is due, and remove old metadata.

    Args:
        folder: of the fleet; the online key must be in its place.
        clock: the time now.
        every: also what is not due, where its key is here.

    Raises:
        FleetError: there is no repository, or the online key is not here.
    """
    with locked(folder):
        rotate.settle(folder, clock=clock)
        editor = Editor(folder, clock=clock)
        online = signers.read(folder.online_key, role=roles.TIMESTAMP)
        due = _due(editor, every=every)
        signed, waiting = _sign(editor, folder, due)
        if roles.ROOT in due:
            by = rotate.root_signers(folder)
            if len(by) < roles.ROOT_THRESHOLD:
                waiting[roles.ROOT] = due[roles.ROOT]
            else:
                editor.write_root(editor.next_root(deepcopy(editor.root), by))
                signed.append(roles.ROOT)
        renew = roles.SNAPSHOT in due
        if signed or renew or roles.TIMESTAMP in due:
            editor.commit([online], renew=renew)
            signed += [roles.SNAPSHOT, roles.TIMESTAMP] if signed or renew else [roles.TIMESTAMP]
        return Refreshed(
            signed=tuple(signed),
            waiting=waiting,
            expires=editor.timestamp.signed.expires,
            removed=sweep(folder, editor),
        )


def _due(editor: Editor, *, every: bool) -> Mapping[str, datetime]:
    """Roles to be signed again, with the time they expire."""
    expires = {role: editor.read(role).signed.expires for role in editor.targets_roles()}
    expires[roles.ROOT] = editor.root.signed.expires
    expires[roles.SNAPSHOT] = editor.snapshot.signed.expires
    expires[roles.TIMESTAMP] = editor.timestamp.signed.expires
    return {
        role: at.replace(tzinfo=timezone.utc)
        for role, at in expires.items()
        if every or roles.is_due(role, at, at=editor.now)
    }


def _sign(
    editor: Editor, folder: FleetFolder, due: Mapping[str, datetime]
) -> tuple[list[str], dict[str, datetime]]:
    signed: list[str] = []
    waiting: dict[str, datetime] = {}
    keys: dict[Path, CryptoSigner | None] = {}
    for role, expires in due.items():
        file = key_file(folder, role)
        if file is None:
            continue
        if file not in keys:
            keys[file] = signers.present(file)
        signer = keys[file]
        if signer is None:
            waiting[role] = expires
        else:
            editor.change(role, signer)
            signed.append(role)
    return signed, waiting


def key_file(folder: FleetFolder, role: str) -> Path | None:
    """The key that signs targets or a delegated role; `None` for the other top-level roles."""
    if role.startswith(roles.RELEASES):
        return folder.release_key
    return {roles.TARGETS: folder.targets_key, roles.CANDIDATES: folder.control_key}.get(role)
