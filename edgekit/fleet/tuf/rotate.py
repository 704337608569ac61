"""Rotate: keys are exchanged without a moment in which a device could not follow.

The new key lies beside the old one as `…-next.key`. What the old key signed is signed by both and
counts for devices with either root; then the new root is written, signed by the threshold of the
old root's keys and of its own; then the new file takes the old one's place. A process that is
killed in between is carried on by `settle`, which every later change calls.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from edgekit import storage
from edgekit.clock import Clock
from edgekit.errors import FleetError, UsageError
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.tuf import roles, signers
from edgekit.fleet.tuf.editor import Editor, locked
from edgekit.signing import SigningKey

ONLINE = "online"
RELEASE = "release"


def names(folder: FleetFolder) -> dict[str, Path]:
    """What can be exchanged, and the file of each key."""
    found = {path.stem: path for path in folder.root_keys}
    return found | {
        roles.TARGETS: folder.targets_key,
        ONLINE: folder.online_key,
        RELEASE: folder.release_key,
    }


def rotate(folder: FleetFolder, replace: Sequence[str], *, clock: Clock) -> int:
    """Exchange keys and write a new root; returns its version.

    Args:
        folder: of the fleet, with enough root keys in their places.
        replace: of `names`; none writes a root that lives longer and is else the same.
        clock: gives the expiries.

    Raises:
        UsageError: a name is not known.
        FleetError: too few root keys are here, or a key that must sign is not.
    """
    files = names(folder)
    for name in replace:
        if name not in files:
            raise UsageError(f"there is no key {name!r} to replace", hint=", ".join(files))
    with locked(folder):
        _settle(folder, Editor(folder, clock=clock))
        editor = Editor(folder, clock=clock)
        _require_keys(editor, folder, replace)
        new = {name: signers.new(next_file(files[name])) for name in replace}
        root = _next_root(editor, folder, new)
        _sign_by_both(editor, folder, new)
        editor.write_root(root)
        _settle(folder, editor)
        return root.signed.version


def settle(folder: FleetFolder, *, clock: Clock) -> None:
    """Put new keys that count already into their places. Called under `locked`."""
    _settle(folder, Editor(folder, clock=clock))


def next_file(key: Path) -> Path:
    """Where a key lies that is going to replace another."""
    return key.with_name(f"{key.stem}-next{key.suffix}")


def root_signers(folder: FleetFolder) -> list[CryptoSigner]:
    """The root keys that are here."""
    found = [signers.present(path) for path in folder.root_keys]
    return [signer for signer in found if signer is not None]


def _settle(folder: FleetFolder, editor: Editor) -> None:
    for name, key in names(folder).items():
        successor = next_file(key)
        if not signers.is_here(successor):
            continue
        keyid = signers.of(SigningKey.read(successor)).public_key.keyid
        if keyid not in _counting(editor, name):
            continue
        if name == RELEASE:
            pem = SigningKey.read(successor).public.pem
            storage.write(folder.trust_release, pem)
            storage.write(folder.release_pub, pem)
        os.replace(successor, key)
        storage.sync_folder(key.parent)


def _counting(editor: Editor, name: str) -> list[str]:
    """Ids of the keys that count for a name now."""
    if name == RELEASE:
        return editor.delegated(roles.RELEASES)
    role = {ONLINE: roles.TIMESTAMP, roles.TARGETS: roles.TARGETS}.get(name, roles.ROOT)
    return list(editor.root.signed.roles[role].keyids)


def _next_root(editor: Editor, folder: FleetFolder, new: dict[str, CryptoSigner]) -> Metadata[Root]:
    root = deepcopy(editor.root)
    by = root_signers(folder)
    for name, signer in new.items():
        if name == RELEASE:
            continue
        old = _old_keyid(folder, root.signed, name)
        held = {
            ONLINE: (roles.SNAPSHOT, roles.TIMESTAMP),
            roles.TARGETS: (roles.TARGETS,),
        }.get(name, (roles.ROOT,))
        for role in held:
            root.signed.add_key(signer.public_key, role)
            if old is not None:
                root.signed.revoke_key(old, role)
        if held == (roles.ROOT,):
            by.append(signer)
    return editor.next_root(root, by)


def _require_keys(editor: Editor, folder: FleetFolder, replace: Sequence[str]) -> None:
    """Raise `FleetError` before a new key is made, where those that must sign are not here."""
    for name in replace:
        if name != RELEASE:
            _old_keyid(folder, editor.root.signed, name)
    role = editor.root.signed.roles[roles.ROOT]
    here = {signer.public_key.keyid for signer in root_signers(folder)} & set(role.keyids)
    if len(here) < role.threshold:
        raise FleetError(
            f"{len(here)} of the root keys are in {folder.offline}, {role.threshold} must sign",
            hint="bring them back into that folder",
        )


def _old_keyid(folder: FleetFolder, root: Root, name: str) -> str | None:
    """Id of the key that is replaced. A root key that was lost is found as the one that is left."""
    here = signers.present(names(folder)[name])
    if here is not None:
        return here.public_key.keyid
    if name == ONLINE:
        return root.roles[roles.TIMESTAMP].keyids[0]
    if name == roles.TARGETS:
        return root.roles[roles.TARGETS].keyids[0]
    known = {signer.public_key.keyid for signer in root_signers(folder)}
    lost = [keyid for keyid in root.roles[roles.ROOT].keyids if keyid not in known]
    if len(lost) != 1:
        raise FleetError(
            f"{name}.key is not here, and {len(lost)} root keys are missing: which is it?",
            hint="bring the other root keys, so that only the lost one is missing",
        )
    return lost[0]


def _sign_by_both(editor: Editor, folder: FleetFolder, new: dict[str, CryptoSigner]) -> None:
    """Sign, so that it counts under the old root and the new, what the exchanged keys sign."""
    online = [signers.present(folder.online_key), new.get(ONLINE)]
    targets = [signers.present(folder.targets_key), new.get(roles.TARGETS)]
    if RELEASE in new:
        _delegate(editor, new[RELEASE])
    if RELEASE in new or roles.TARGETS in new:
        by = [signer for signer in targets if signer is not None]
        if not by:
            raise FleetError(f"{folder.targets_key} is needed to sign targets and is not here")
        editor.change(roles.TARGETS, *by)
    if RELEASE in new or roles.TARGETS in new or ONLINE in new:
        present = [signer for signer in online if signer is not None]
        if not present:
            raise FleetError(f"{folder.online_key} is needed to sign snapshot and is not here")
        editor.commit(present, renew=True)


def _delegate(editor: Editor, release: CryptoSigner) -> None:
    """Let the new release key sign for all releases; one snapshot brings all of it."""
    top = editor.read(roles.TARGETS).signed
    old = _counting(editor, RELEASE)
    top.add_key(release.public_key, roles.RELEASES)
    metadata = editor.read(roles.RELEASES)
    metadata.signed.add_key(release.public_key)
    for keyid in old:
        top.revoke_key(keyid, roles.RELEASES)
        metadata.signed.revoke_key(keyid)
    editor.change(roles.RELEASES, release)
    for role in editor.targets_roles():
        if role.startswith(f"{roles.RELEASES}-"):
            editor.change(role, release)
