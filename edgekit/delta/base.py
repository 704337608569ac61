"""Base: the entries of an old bundle as one run of bytes, read piece by piece.

The run is the data of all entries in the order of the container, without headers and padding, so
that a `.edge` file and the folder it was unpacked to give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from edgekit import container
from edgekit.bundle import MANIFEST, Folder
from edgekit.delta.form import DeltaError
from edgekit.errors import BundleError, StorageError
from edgekit.manifest import MAX_MANIFEST_BYTES


class Piece(NamedTuple):
    """One entry: where its bytes lie in a file, and in the run."""

    name: str
    file: Path
    offset: int
    size: int


class Base:
    """An old bundle, a `.edge` file or an unpacked folder. Only one file of it is open at a time.

    Raises:
        BundleError: it is no bundle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.pieces = _in_folder(path) if path.is_dir() else _in_file(path)
        except BundleError as e:
            raise type(e)(f"{path}: {e}", hint=e.hint) from e
        ends = list(accumulate(piece.size for piece in self.pieces))
        self.starts = [0, *ends[:-1]]
        self.size_bytes = ends[-1]
        self._open: tuple[Path, int] | None = None

    def digest(self) -> str:
        """The digest of the bundle, from the bytes that are there: `sha256:…`."""
        if not self.pieces or self.pieces[0].name != MANIFEST:
            raise DeltaError(f"{self.path} has no {MANIFEST}: it is not a bundle")
        size = self.pieces[0].size
        if size > MAX_MANIFEST_BYTES:
            raise DeltaError(f"{self.path}: {MANIFEST} has {size} bytes")
        return f"sha256:{hashlib.sha256(self.read(0, size)).hexdigest()}"

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the run, raising `StorageError` where the disk does not give them."""
        parts = []
        index = bisect_right(self.starts, offset) - 1
        while length:
            piece = self.pieces[index]
            skipped = offset - self.starts[index]
            count = min(length, piece.size - skipped)
            if count:
                parts.append(self._pread(piece, skipped, count))
            offset, length, index = offset + count, length - count, index + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def __enter__(self) -> Base:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _pread(self, piece: Piece, skipped: int, count: int) -> bytes:
        try:
            if self._open is None or self._open[0] != piece.file:
                self.close()
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                self._open = (piece.file, os.open(piece.file, flags))
            found = os.pread(self._open[1], count, piece.offset + skipped)
        except OSError as e:
            raise StorageError(f"{piece.file} cannot be read: {e.strerror}") from e
        if len(found) != count:
            raise DeltaError(f"{piece.file} is shorter than it was", hint="fetch the whole bundle")
        return found


def _in_folder(folder: Path) -> list[Piece]:
    sizes = Folder(folder).sizes()
    return [Piece(name, folder / name, 0, sizes[name]) for name in container.order(sizes)]


def _in_file(path: Path) -> list[Piece]:
    with container.open_map(path) as view:
        entries = container.read(view)
    return [Piece(entry.name, path, entry.offset, entry.size) for entry in entries.values()]
