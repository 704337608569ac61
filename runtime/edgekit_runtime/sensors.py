"""Sensors: what the daemon and the board use now, as Linux tells; `None` where it does not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgekit.messages import Resources

PROC = Path("/proc")
THERMAL = Path("/sys/class/thermal")


def read(state: Path, *, proc: Path = PROC, thermal: Path = THERMAL) -> Resources:
    """CPU seconds and resident bytes of this process; memory, disk and heat of the board.

    Args:
        state: a folder on the disk whose free space counts.
        proc: where Linux shows processes.
        thermal: where Linux shows thermal zones; the hottest one counts, in degrees Celsius.
    """
    return Resources(
        cpu_s=time.process_time(),
        rss_bytes=_kilobytes(proc / "self" / "status", "VmRSS") or 0,
        memory_free_bytes=_kilobytes(proc / "meminfo", "MemAvailable"),
        disk_free_bytes=_disk_free(state),
        temperature_c=max(_temperatures(thermal), default=None),
    )


def _kilobytes(path: Path, field: str) -> int | None:
    """The value of a line `field:  123 kB`, in bytes."""
    text = _text(path) or ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None


def _disk_free(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _temperatures(thermal: Path) -> Iterator[float]:
    for zone in sorted(thermal.glob("thermal_zone*/temp")):
        text = (_text(zone) or "").strip()
        if text.removeprefix("-").isdigit():
            yield int(text) / 1000


def _text(path: Path) -> str | None:
    """A file of the kernel; a zone that is switched off refuses to be read."""
    try:
        return path.read_text("ascii", errors="replace")
    except OSError:
        return None
