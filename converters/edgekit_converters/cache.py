"""Cache: what a build worked out, kept by the content that it was worked out from.

A key covers everything that an entry depends on, so an entry is never stale: it is there or it is
not. An entry is a folder of files that appears whole and goes whole, whatever ends the build that
writes or removes it, and a build that was interrupted goes on from what it had put here. What was
used least lately goes first when there is too much.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from edgekit import storage
from edgekit.errors import StorageError
from edgekit_runtime import engines, pipeline

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 30

_GOING = ".old-"
# Operator lists of accelerators are YAML.
_SOURCES = frozenset({".py", ".yaml"})

T = TypeVar("T")


class Cache:
    """Entries below one folder.

    Args:
        folder: is made when something is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._complained = False

    def recall(self, kind: str, key: str, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of the folder of an entry; None where there is none.

        Another build may trim an entry while it is read: then it is not there.
        """
        if self._folder is None:
            return None
        entry = self._folder / kind / key
        # It may not be ours to touch.
        with suppress(OSError):
            os.utime(entry)
        try:
            return read(entry)
        except OSError:
            return None

    def put(self, kind: str, key: str, files: Mapping[str, bytes | Path]) -> None:
        """Keep an entry; one that is there already stays.

        A full or read-only disk keeps a build from remembering, not from building: it is logged
        once.
        """
        if self._folder is None:
            return
        try:
            self._write(self._folder / kind, key, files)
        except (OSError, StorageError) as e:
            if not self._complained:
                log.warning("nothing is kept for the next build in %s: %s", self._folder, e)
            self._complained = True

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
            self._remove(entry)
            excess -= size_bytes

    @staticmethod
    def _remove(entry: Path) -> None:
        """Remove an entry; nobody finds half of it, and what is left of it goes the next time."""
        with suppress(OSError):
            entry = entry.rename(entry.with_name(f"{_GOING}{entry.name.removeprefix(_GOING)}"))
        shutil.rmtree(entry, ignore_errors=True)

    @staticmethod
    def _write(folder: Path, key: str, files: Mapping[str, bytes | Path]) -> None:
        storage.make_folder(folder)
        staged = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
        try:
            for name, content in files.items():
                with (staged / name).open("xb") as file:
                    if isinstance(content, Path):
                        with content.open("rb") as source:
                            shutil.copyfileobj(source, file)
                    else:
                        file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            storage.sync_folder(staged)
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
    """Identity of what makes and runs artefacts, code, lists and the engines that are here: another
    version keeps its own entries."""
    digest = hashlib.sha256()
    for folder, file in sources():
        digest.update(f"{file.relative_to(folder)}\n".encode())
        digest.update(file.read_bytes())
    digest.update(msgspec.json.encode(engines.versions(), order="deterministic"))
    return digest.hexdigest()


def sources() -> Iterator[tuple[Path, Path]]:
    """The files that decide what is made and found, each behind its package's folder."""
    for module in (__file__, engines.__file__, pipeline.__file__):
        folder = Path(module).parent
        for file in sorted(folder.rglob("*")):
            if file.suffix in _SOURCES:
                yield folder, file
