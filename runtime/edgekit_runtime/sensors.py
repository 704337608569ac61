"""Sensors: what the daemon and the board use now, as Linux tells; left out where it does not."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import msgspec

from edgekit.messages import Resources
from edgekit.structs import Strict
from edgekit_runtime import sysfs

# Rails that all of a board's power comes in by, as Jetson modules label them.
_WHOLE = ("VDD_IN", "POM_5V_IN")
_MOST_WORDS = 8


class Board(Strict, frozen=True, kw_only=True):
    """Heat, clocks and power at one moment, each by its name on this board.

    Attributes:
        temperatures_c: of thermal zones, degrees Celsius.
        clocks_mhz: of cores.
        devices_mhz: of GPU, NPU and memory.
        device_loads: how busy these are, 0 to 1.
        rails_w: power on rails that are measured, watts.
        energies_j: counters of energy, joules; they wrap.
        throttled: what slows the board down now, in words.
        events: counters of throttling and over-current since the board started.
    """

    temperatures_c: dict[str, float] = {}
    clocks_mhz: dict[str, float] = {}
    devices_mhz: dict[str, float] = {}
    device_loads: dict[str, float] = {}
    rails_w: dict[str, float] = {}
    energies_j: dict[str, float] = {}
    throttled: tuple[str, ...] = ()
    events: dict[str, int] = {}


def read_board(root: Path = sysfs.ROOT) -> Board:
    """What the board's sensors say now; `root` is where its file systems are."""
    return Board(
        temperatures_c=dict(sysfs.temperatures_c(root)),
        clocks_mhz=dict(sysfs.clocks_mhz(root)),
        devices_mhz=dict(sysfs.devices_mhz(root)),
        device_loads=dict(sysfs.device_loads(root)),
        rails_w=dict(sysfs.rails_w(root)),
        energies_j=dict(sysfs.energies_j(root)),
        throttled=tuple(sysfs.throttled(root)),
        events=dict(sysfs.events(root)),
    )


def read(state: Path, *, root: Path = sysfs.ROOT) -> Resources:
    """CPU seconds and resident bytes of this process; memory, disk, heat and power of the board.

    Args:
        state: a folder on the disk whose free space counts.
        root: where the board's file systems are.
    """
    rails = dict(sysfs.rails_w(root))
    return Resources(
        cpu_s=time.process_time(),
        rss_bytes=_kilobytes(root / "proc/self/status", "VmRSS") or 0,
        memory_free_bytes=_kilobytes(root / "proc/meminfo", "MemAvailable"),
        disk_free_bytes=_disk_free(state),
        temperature_c=max((value for _, value in sysfs.temperatures_c(root)), default=None),
        clock_mhz=max((value for _, value in sysfs.clocks_mhz(root)), default=None),
        power_w=next((rails[name] for name in _WHOLE if name in rails), None),
        throttled=tuple(sysfs.throttled(root))[:_MOST_WORDS],
    )


def rounded(resources: Resources) -> Resources:
    """The same for a journey: three digits of bytes, one decimal of everything else.

    What is below changes all the time, tells nobody anything, and would travel.
    """
    return msgspec.structs.replace(
        resources,
        cpu_s=round(resources.cpu_s, 1),
        rss_bytes=_three_digits(resources.rss_bytes),
        memory_free_bytes=_three_digits(resources.memory_free_bytes),
        disk_free_bytes=_three_digits(resources.disk_free_bytes),
        temperature_c=_one_decimal(resources.temperature_c),
        clock_mhz=_one_decimal(resources.clock_mhz),
        power_w=_one_decimal(resources.power_w),
    )


def _three_digits(value: int | None) -> int | None:
    return None if value is None else round(value, 3 - len(str(value)))


def _one_decimal(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _kilobytes(path: Path, field: str) -> int | None:
    """The value of a line `field:  123 kB`, in bytes."""
    for line in (sysfs.text(path) or "").splitlines():
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


class Sampler:
    """The board's sensors for callers that must not wait: some take milliseconds to read.

    A thread of its own reads them while somebody asks, at most once in `age_s`.

    Args:
        root: where the board's file systems are.
        age_s: how old an answer may be before it is read anew.
    """

    def __init__(self, *, root: Path = sysfs.ROOT, age_s: float = 5.0) -> None:
        self._root = root
        self._age_s = age_s
        self._board = Board()
        self._read_at: float | None = None
        self._reading = threading.Lock()

    def latest(self) -> Board:
        """What was read last, and what is read next at the next call; never waits."""
        is_old = self._read_at is None or time.monotonic() - self._read_at > self._age_s
        if is_old and self._reading.acquire(blocking=False):
            threading.Thread(target=self._read, name="sensors", daemon=True).start()
        return self._board

    def _read(self) -> None:
        try:
            self._board = read_board(self._root)
            self._read_at = time.monotonic()
        finally:
            self._reading.release()
