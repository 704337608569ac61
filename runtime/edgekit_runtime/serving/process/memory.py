"""Memory: what a process holds, and what it need not hold any more."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path


def own_bytes(pid: int) -> int:
    """Anonymous memory of a process, 0 where it is gone. A look costs some microseconds."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text("ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    resident, shared = int(fields[1]), int(fields[2])
    return (resident - shared) * mmap.PAGESIZE


def pss_bytes(pid: int) -> int | None:
    """Resident memory of a process, shared pages by their share; `None` where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def give_back() -> None:
    """Return what this process has freed to the system, where its allocator can; some 1 ms."""
    # glibc has it; others keep less.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
