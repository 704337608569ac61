"""Archives: zip files that models come in, listed within limits and never unpacked to a folder.

What a directory claims is checked before an entry is read: how many entries there are, what they
would unpack to, and that each name stands once and stays inside. `zipfile` reads no more of an
entry than the directory claims.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from edgekit.errors import ModelError

MAX_ENTRIES = 100_000
MAX_UNPACKED_BYTES = 4 << 30
_LARGEST_READ_BYTES = 32 << 20
_SAVE_AGAIN = "save or download the model again"

# What `zipfile` raises for archives that are damaged, encrypted or packed in unknown ways.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file whose directory has been checked.

    Raises:
        ModelError: it is damaged, too large, or has a name twice or outside of it.
    """
    try:
        with _Reader(path) as file, zipfile.ZipFile(file) as archive:
            _require_bounded(archive, path)
            yield archive
    except ZIP_ERRORS as e:
        raise ModelError(f"{path} is a damaged zip archive: {e}", hint=_SAVE_AGAIN) from e


def _require_bounded(archive: zipfile.ZipFile, path: Path) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ModelError(
            f"{path} has {len(entries)} entries, at most {MAX_ENTRIES} are taken", hint=_SAVE_AGAIN
        )
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES:
        raise ModelError(
            f"{path} would unpack to {unpacked} bytes, at most {MAX_UNPACKED_BYTES} are taken",
            hint=_SAVE_AGAIN,
        )
    seen: set[str] = set()
    for entry in entries:
        name = PurePosixPath(entry.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
            raise ModelError(
                f"{path}: its entry {entry.filename!r} leads out of the archive", hint=_SAVE_AGAIN
            )
        if entry.filename in seen:
            raise ModelError(
                f"{path}: its entry {entry.filename!r} is there twice", hint=_SAVE_AGAIN
            )
        seen.add(entry.filename)


class _Reader(io.FileIO):
    """A file that refuses single reads as large as only a forged directory asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGEST_READ_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size} bytes")
        return super().read(size) or b""
