"""Room: whether a disk has the space for an update, before the first byte is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from edgekit.errors import StorageError
from edgekit_runtime.update import Reason, UpdateFailed


class Need(NamedTuple):
    """What an update puts on the disk, in bytes.

    Attributes:
        download: what is still to be fetched.
        rebuilt: the whole file where a delta is fetched, else 0.
        slot: the unpacked bundle.
        freed: what goes from the slot before the bundle is unpacked there.
        reserve: what must stay free for everything else.
    """

    download: int
    rebuilt: int
    slot: int
    freed: int
    reserve: int

    @property
    def total(self) -> int:
        """Free space that there must be now: the largest that is taken at one time."""
        return self.download + self.rebuilt + max(0, self.slot - self.freed) + self.reserve


def check(folder: Path, need: Need) -> None:
    """Compare a need with what is free.

    Raises:
        UpdateFailed: `no_room`, with the figures.
        StorageError: the folder cannot be asked.
    """
    free = _free_bytes(folder)
    if free < need.total:
        raise UpdateFailed(
            Reason.NO_ROOM,
            f"{folder}: {need.total} bytes are needed, {free} are free: {need.download} to fetch, "
            f"{need.rebuilt} to rebuild, {max(0, need.slot - need.freed)} for the second slot, "
            f"{need.reserve} in reserve",
        )


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as e:
        raise StorageError(f"{folder} cannot be used: {e.strerror}") from e
