"""A file below /dev/shm for a test, and how many descriptors are open."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from edgekit_runtime.serving.shm import FOLDER


class File:
    """A file below /dev/shm, as shm_open makes one."""

    def __init__(self, content: bytes) -> None:
        self.key = f"edgekit-test-{secrets.token_hex(8)}"
        self.path = FOLDER / self.key
        self.path.write_bytes(content)

    def read(self) -> bytes:
        return self.path.read_bytes()


@contextmanager
def shared_file(content: bytes = bytes(range(256))) -> Iterator[File]:
    """A file for as long as the block runs, unless the test removes it before."""
    made = File(content)
    try:
        yield made
    finally:
        made.path.unlink(missing_ok=True)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
