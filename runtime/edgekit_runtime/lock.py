"""Lock: one daemon to a state folder. The kernel lets go of it however the daemon ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from edgekit import storage
from edgekit.errors import StorageError

FILE = "lock"
# Whoever only asks holds it for a moment.
_ATTEMPTS = 20
_PAUSE_S = 0.05


class StateLock:
    """Holds a state folder until it is closed.

    Raises:
        StorageError: the folder cannot be written, or another daemon uses it.
    """

    def __init__(self, folder: Path, *, attempts: int = _ATTEMPTS) -> None:
        storage.make_folder(folder)
        self._descriptor = _open(folder / FILE)
        for attempt in range(attempts):
            if attempt:
                time.sleep(_PAUSE_S)
            if self._take():
                return
        os.close(self._descriptor)
        raise StorageError(
            f"another daemon uses {folder}", hint="stop it, or give this one another [state] folder"
        )

    def close(self) -> None:
        """Let the folder go."""
        os.close(self._descriptor)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _open(path: Path) -> int:
    """The lock's file; one that is there on a disk that cannot be written locks as well."""
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as e:
        if e.errno == errno.EROFS and path.exists():
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise StorageError(
            f"{path} cannot be written: {e.strerror}", hint="check [state] folder"
        ) from e


def is_running(folder: Path) -> bool:
    """Whether a daemon uses this state folder now; who may only read there may ask, too."""
    try:
        descriptor = os.open(folder / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
