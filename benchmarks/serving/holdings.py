"""What a process tree holds: memory, descriptors, shared memory. What leaks grows here."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgekit_runtime.capacity.resources import descendants, pss_bytes

# After work has ended, until allocators and threads have settled.
SETTLE_S = 1.0


def held(pid: int) -> dict[str, float]:
    """PSS in MB, descriptors, threads, and shared-memory segments of a process and its children."""
    family = descendants([pid])
    return {
        "pss_mb": sum(map(pss_bytes, family)) / 2**20,
        "descriptors": sum(len(list(_links(one))) for one in family),
        "threads": sum(len(list(Path(f"/proc/{one}/task").glob("*"))) for one in family),
        "segments": len({link for one in family for link in _links(one) if _is_segment(link)}),
        "files_in_shm": len(list(Path("/dev/shm").iterdir())),
        "processes": len(family),
    }


def settled(pid: int) -> dict[str, float]:
    """`held`, after a pause."""
    time.sleep(SETTLE_S)
    return held(pid)


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What became more."""
    return {name: after[name] - value for name, value in before.items()}


def _links(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        # It may be closed between the listing and now.
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(path)


def _is_segment(link: str) -> bool:
    return link.startswith(("/memfd:", "/dev/shm/"))
