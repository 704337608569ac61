"""An update by a delta, in a process that is killed while it rebuilds the bundle.

    python -m tests.runtime.rebuild_once < JOB

What ends it is a real `kill -9`, as the kernel sends one where memory ends.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from edgekit.messages import Wanted
from edgekit_runtime.trusted.target import Target
from tests.runtime.fetching import get, make


class Job(msgspec.Struct, frozen=True):
    """What to bring, and from what."""

    folder: str
    base: str
    base_digest: str
    wanted: Wanted
    target: Target


def is_rebuilding(part: Path) -> bool:
    """Whether a bundle's file is being written beside its place."""
    return any(part.parent.glob(f".{part.name}.????????.tmp"))


def main(job: Job) -> None:
    fetcher = make(Path(job.folder), "http://unused/")

    def wait(_: float) -> bool:
        if is_rebuilding(fetcher.part(job.wanted)):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    get(
        fetcher,
        job.wanted,
        base=Path(job.base),
        base_digest=job.base_digest,
        target=job.target,
        wait=wait,
    )


if __name__ == "__main__":
    main(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
