"""Watch: whether files changed since they were last read, told from what the file system says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

Stamp = tuple[int, ...] | None


class Watch:
    """Remembers how files were. Looking costs some microseconds a file, so it is done by timer."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = _stamps(paths)

    def changed(self) -> bool:
        """Whether a file was written, replaced, removed or given other permissions since asked."""
        now = _stamps(self._paths)
        before, self._seen = self._seen, now
        return now != before


def _stamps(paths: Sequence[Path]) -> tuple[Stamp, ...]:
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_mode,
    )
