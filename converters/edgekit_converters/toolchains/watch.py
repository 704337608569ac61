"""Watching a process group: what it holds in memory, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Fields of /proc/PID/stat after the name, which ends with the last parenthesis (proc_pid_stat(5)).
_GROUP, _RESIDENT = 2, 21


def members(group: int) -> dict[int, int]:
    """Every process of a group, with its resident memory in bytes."""
    found = {}
    for entry in os.listdir(_PROC):
        if not entry.isdigit():
            continue
        # It may end while it is looked at.
        with suppress(OSError):
            fields = (_PROC / entry / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[_GROUP]) == group:
                found[int(entry)] = int(fields[_RESIDENT]) * _PAGE_BYTES
    return found


def exceeds(group: int, limit_bytes: int) -> bool:
    """Whether a group holds more memory than this.

    Pages that processes share count once: the sum of resident sizes, which is cheap to read, only
    says when a closer look is due.
    """
    resident = members(group)
    if sum(resident.values()) <= limit_bytes:
        return False
    return sum(_proportional(process, size) for process, size in resident.items()) > limit_bytes


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the group that a process leads, and the process.

    It is waited for only then: until that, no other group can have its number.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the leader of a group has ended; it is left to be waited for."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


def signal_name(number: int) -> str:
    """What the kernel calls a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time one"


def _proportional(process: int, resident_bytes: int) -> int:
    """A process's share of memory (PSS), in bytes; its resident size where that is not told."""
    with suppress(OSError):
        for line in (_PROC / str(process) / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) << 10
    return resident_bytes
