"""Logs of tools: each call keeps one, the newest stay."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from pathlib import Path

from edgekit import storage

KEPT = 200
_LAST_BYTES = 4096
_LONGEST_LINE = 300


def home() -> Path:
    """Where logs lie."""
    return storage.cache_home() / "logs"


def new(toolchain: str, driver: str, *, now_s: float) -> Path:
    """The path of a log whose name tells time (UTC), tool chain and driver; older ones go.

    Args:
        now_s: seconds since 1970.

    Raises:
        StorageError: the folder cannot be made.
    """
    folder = home()
    storage.make_folder(folder)
    # Names begin with the time, so they sort by it.
    for old in sorted(folder.glob("*.log"))[: -(KEPT - 1)]:
        # Another build may remove it meanwhile.
        with suppress(OSError):
            old.unlink()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_s))
    return folder / f"{stamp}-{toolchain}-{driver}-{secrets.token_hex(3)}.log"


def last_line(log: Path) -> str:
    """The last line that is not empty, shortened."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:_LONGEST_LINE] if lines else "it said nothing"
