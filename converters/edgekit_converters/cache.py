"""Cache: what a build worked out, kept by the content that it was worked out from.

A key covers everything that an entry depends on, so an entry is never stale: it is there or it is
not. An entry is a folder of files that appears whole, whatever ends the build that writes it, and
a build that was interrupted goes on from what it had put here. What was used least lately goes
first when there is too much.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec

from edgekit import storage
from edgekit.errors import StorageError
from edgekit_runtime import engines

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 30


class Cache:
    """Entries below one folder.

    Args:
        folder: is made when something is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of an entry; None where there is none."""
        if self._folder is None:
            return None
        entry = self._folder / kind / key
        if not entry.is_dir():
            return None
        try:
            os.utime(entry)
        except OSError:
            # Another build may have trimmed it this instant, or it may not be ours to touch.
            return entry if entry.is_dir() else None
        return entry

    def put(self, kind: str, key: str, files: Mapping[str, bytes | Path]) -> None:
        """Keep an entry; one that is there already stays.

        A full or read-only disk keeps a build from remembering, not from building: it is logged.
        """
        if self._folder is None:
            return
        try:
            self._write(self._folder / kind, key, files)
        except (OSError, StorageError) as e:
            log.warning("nothing is kept for the next build: %s", e)

    def trim(self, *, max_bytes: int = MAX_BYTES) -> None:
        """Remove the entries used least lately until all take at most `max_bytes`."""
        if self._folder is None or not self._folder.is_dir():
            return
        entries = []
        for entry in self._folder.glob("*/*"):
            # Another build may remove it meanwhile.
            with suppress(OSError):
                size_bytes = sum(file.stat().st_size for file in entry.iterdir())
                entries.append((entry.stat().st_mtime_ns, size_bytes, entry))
        excess = sum(size_bytes for _, size_bytes, _ in entries) - max_bytes
        for _, size_bytes, entry in sorted(entries):
            if excess <= 0:
                break
            shutil.rmtree(entry, ignore_errors=True)
            excess -= size_bytes

    @staticmethod
    def _write(folder: Path, key: str, files: Mapping[str, bytes | Path]) -> None:
        storage.make_folder(folder)
        staged = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
        try:
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, staged / name)
                else:
                    (staged / name).write_bytes(content)
            try:
                staged.rename(folder / key)
            except OSError:
                # Another build has put the same entry there meanwhile.
                if not (folder / key).is_dir():
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def key_of(*facts: object) -> str:
    """The key of what depends on these facts and nothing else."""
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


@cache
def code_digest() -> str:
    """Identity of the code that makes and runs artefacts: another version keeps its own entries."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(engines.__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
