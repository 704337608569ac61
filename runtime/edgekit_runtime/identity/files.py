"""Identity files: an identity is on disk as a whole or not at all, whatever is cut off when.

The folder of the identity is a symbolic link to one beside it, `.NAME-…`. A new identity is written
to a new folder, checked there, and becomes the identity by the one rename of the link. Keys that
wait for a certificate lie beside it too, so that a question whose answer was lost is asked again
for the same key. What a cut left over is removed at the next change.

Whoever enrols as root does it for the user whose state folder it is, and with that user's rights
alone: what the user put into the folder can lead root to nothing that the user could not reach.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgekit import storage
from edgekit.errors import ConfigError, StorageError
from edgekit.signing import SigningKey

_PRIVATE = ".key"


def pending_key(folder: Path, purpose: str) -> SigningKey:
    """The key that waits for a certificate, made at the first call.

    Args:
        folder: of the identity it is for.
        purpose: what the certificate is asked with; another one gets another key.
    """
    path = folder.parent / f".{folder.name}.pending-{purpose}{_PRIVATE}"
    with _as_owner(folder.parent):
        if not os.path.lexists(path):
            storage.write(path, SigningKey.generate().pem(), mode=0o600)
        return SigningKey.read(path)


def switch(folder: Path, files: Mapping[str, bytes], *, check: Callable[[Path], object]) -> None:
    """Make `files` (name to content) the identity, and remove what came before.

    Args:
        folder: of the identity.
        check: raises for a folder that is not a whole identity; nothing has changed then.

    Raises:
        ConfigError: a folder of something else stands in the way.
        StorageError: the disk is full, or the place cannot be written.
    """
    with _as_owner(folder.parent):
        _require_ours(folder)
        _switch(folder, files, check=check)


def _switch(folder: Path, files: Mapping[str, bytes], *, check: Callable[[Path], object]) -> None:
    fresh = folder.parent / f".{folder.name}-{secrets.token_hex(8)}"
    link = folder.parent / f".{folder.name}.link-{secrets.token_hex(8)}"
    try:
        storage.make_folder(fresh, mode=0o700)
        for name, content in files.items():
            private = name.endswith(_PRIVATE)
            storage.write(fresh / name, content, mode=0o600 if private else 0o644)
        check(fresh)
        link.symlink_to(fresh.name, target_is_directory=True)
        if folder.is_dir() and not folder.is_symlink():
            folder.rmdir()  # it is empty, and a link cannot replace it
        os.replace(link, folder)
        storage.sync_folder(folder.parent)
    except OSError as e:
        raise StorageError(f"{folder} cannot be written: {e.strerror}") from e
    finally:
        tidy(folder)


def tidy(folder: Path) -> None:
    """Remove what is not the identity: older ones, and those that were not made to their end."""
    current = os.readlink(folder) if folder.is_symlink() else None
    for path in folder.parent.glob(f".{folder.name}-*"):
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.parent.glob(f".{folder.name}.link-*"):
        path.unlink(missing_ok=True)


def drop_pending(folder: Path) -> None:
    """Remove keys that waited for a certificate that came; those cut off in writing too."""
    with _as_owner(folder.parent):
        for path in folder.parent.glob(f".*{folder.name}.pending-*"):
            path.unlink(missing_ok=True)


def _require_ours(folder: Path) -> None:
    if folder.is_symlink() or not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise ConfigError(
            f"{folder} was not made by an enrolment", hint="name another folder as identity"
        )


@contextmanager
def _as_owner(place: Path) -> Iterator[None]:
    """Within the block, root has the rights of whose folder it is; in all threads."""
    owner = _owner(place) if os.geteuid() == 0 else None
    if owner is None:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _owner(place: Path) -> os.stat_result | None:
    """Who can change a place, or what is above it; `None` where nobody but root can.

    A link counts by itself first: who made it chose where it leads.
    """
    for path in (place.absolute(), *place.absolute().parents):
        for look in (os.lstat, os.stat):
            try:
                found = look(path)
            except OSError:
                break
            if found.st_uid != 0:
                return found
    return None
