"""Reach: whether whoever asks a board may look into its state folder, and who may."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import StorageError

_REQUESTS = "requests"


@contextmanager
def reaching(state: Path, *, writes: bool = False) -> Iterator[None]:
    """Look into a state folder, which belongs to the service's user.

    Args:
        state: the folder; one that is missing may be looked for.
        writes: whether a request is to be left there.

    Raises:
        StorageError: this user may not; the hint says who may.
    """
    if not _may(state, os.R_OK | os.X_OK):
        raise _refusal(state, state, "read")
    requests = state / _REQUESTS
    if writes and not _may(requests if requests.exists() else state, os.W_OK | os.X_OK):
        raise _refusal(state, state, "written")
    try:
        yield
    except PermissionError as e:
        raise _refusal(state, e.filename or state, "read") from e


def _may(folder: Path, mode: int) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return os.access(folder, mode)


def _refusal(state: Path, what: object, done: str) -> StorageError:
    return StorageError(
        f"{what} cannot be {done} by this user", hint=f"run it as {_owner(state)}, or as root"
    )


def _owner(state: Path) -> str:
    """How to become the user whose folder it is."""
    try:
        uid = state.stat().st_uid
    except OSError:
        return "the service's user"
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"'#{uid}'"
    return f"the service's user: sudo -u {name} edgekit device …"
