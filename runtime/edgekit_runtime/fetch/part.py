"""Part: a file that is still coming, and how much of it can be believed after a kill.

    NAME         the bytes from the first on
    NAME.mark    how many of them are on the medium, since which start of the system, and the
                 validator of the server they came from

After a kill of the daemon the system still has every byte that was written, so the file's size
counts. After a power cut only what the mark says does: a file system may keep a file's new size and
lose what belongs there. Promise: no more than `SYNC_BYTES` are fetched again for a power cut, and a
tail of zeros is never taken for data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from edgekit import storage
from edgekit.errors import StorageError
from edgekit.structs import Strict

SYNC_BYTES = 4 << 20
MARK_SUFFIX = ".mark"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Mark(Strict, frozen=True, kw_only=True):
    """What is known of a part.

    Attributes:
        boot: start of the system during which it was written; "" where the system has no name
            for it.
        durable_bytes: on the medium for certain.
        url: where the validator holds.
        etag: the validator; "" where the server gave none.
    """

    boot: str
    durable_bytes: Annotated[int, msgspec.Meta(ge=0)]
    url: str = ""
    etag: str = ""


def boot_id() -> str:
    """Which start of the system this is; "" where it does not say."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Part:
    """One file below the fetch folder.

    Args:
        path: of the file.
        size_bytes: when it is whole.
        sha256: of the whole file.
        boot: which start of the system this is.
    """

    def __init__(self, path: Path, *, size_bytes: int, sha256: str, boot: str) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.sha256 = sha256
        self._boot = boot
        self._mark_path = path.with_name(path.name + MARK_SUFFIX)
        self._mark = self._read_mark()

    @property
    def is_begun(self) -> bool:
        """Whether a download of this file was decided on."""
        return self._mark is not None

    def held_bytes(self) -> int:
        """How much is here, from the first byte on."""
        size = file_size(self.path)
        if self._mark is None or size > self.size_bytes:
            return 0
        same_boot = self._boot != "" and self._mark.boot == self._boot
        return size if same_boot else min(size, self._mark.durable_bytes)

    def etag(self, url: str) -> str:
        """The validator of what is here, where that came from this address; else ""."""
        return self._mark.etag if self._mark is not None and self._mark.url == url else ""

    def is_right(self) -> bool:
        """Whether the whole file is the announced one."""
        return file_sha256(self.path) == self.sha256

    def begin(self) -> None:
        """Decide on a download; what is here stays, where it is known what it is."""
        if self._mark is None:
            remove(self.path)
            self._write_mark(Mark(boot=self._boot, durable_bytes=0))

    def finish(self) -> None:
        """Somebody else put the whole file here, and it is on the medium."""
        self._write_mark(Mark(boot=self._boot, durable_bytes=self.size_bytes))

    def clear(self) -> None:
        """Throw away what is here; that it was begun is still known."""
        self._write_mark(Mark(boot=self._boot, durable_bytes=0))
        remove(self.path)

    def delete(self) -> None:
        """Leave nothing behind."""
        remove(self.path)
        remove(self._mark_path)
        self._mark = None

    @contextmanager
    def writing(self, offset: int, *, url: str, etag: str) -> Iterator[Writer]:
        """Take what a server sends from `offset` on; on the medium when the block ends.

        Args:
            offset: first byte that comes; not beyond `held_bytes`.
            url: where it comes from.
            etag: validator of what is there; "" where there is none.
        """
        held = self.held_bytes()
        durable = min(held, self._mark.durable_bytes if self._mark is not None else 0)
        # First the mark, then the bytes: it never says more than is so.
        self._write_mark(Mark(boot=self._boot, durable_bytes=durable, url=url, etag=etag))
        with _disk(self.path), self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.truncate(held)
        with _disk(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            writer = Writer(self, descriptor, offset=offset, held=held, durable=durable)
            try:
                yield writer
            finally:
                writer.sync()
        finally:
            os.close(descriptor)

    def durable(self, size_bytes: int) -> None:
        """Say that so much is on the medium."""
        mark = self._mark or Mark(boot=self._boot, durable_bytes=0)
        self._write_mark(msgspec.structs.replace(mark, durable_bytes=size_bytes))

    def _read_mark(self) -> Mark | None:
        try:
            return msgspec.json.decode(self._mark_path.read_bytes(), type=Mark)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StorageError(f"{self._mark_path} cannot be read: {e.strerror}") from e
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # Begun, and nothing of it can be believed.
            return Mark(boot="", durable_bytes=0)

    def _write_mark(self, mark: Mark) -> None:
        if mark != self._mark:
            storage.write(self._mark_path, msgspec.json.encode(mark))
            self._mark = mark


class Writer:
    """Puts what a server sends where it belongs.

    Where a server sends again what is here, the disk is read and not written: a server without
    ranges costs time and no flash, and takes nothing away that others delivered.
    """

    def __init__(
        self, part: Part, descriptor: int, *, offset: int, held: int, durable: int
    ) -> None:
        self._part = part
        self._descriptor = descriptor
        self._position = offset
        self._held = held
        self._durable = durable

    @property
    def position(self) -> int:
        """Where the next byte goes."""
        return self._position

    @property
    def held_bytes(self) -> int:
        """How much of the file is here."""
        return self._held

    def put(self, chunk: bytes) -> None:
        """Take the next bytes."""
        with _disk(self._part.path):
            known = os.pread(
                self._descriptor, min(len(chunk), self._held - self._position), self._position
            )
            if known != chunk[: len(known)]:
                self._give_up()
                known = b""
            rest = memoryview(chunk)[len(known) :]
            self._position += len(known)
            while rest:
                written = os.pwrite(self._descriptor, rest, self._position)
                self._position += written
                rest = rest[written:]
            self._held = max(self._held, self._position)
        if self._held - self._durable >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Bring everything to the medium, and then say so."""
        with _disk(self._part.path):
            os.fsync(self._descriptor)
        self._durable = self._held
        self._part.durable(self._held)

    def _give_up(self) -> None:
        """The server has another file than what is here from this position on."""
        if self._durable > self._position:
            self._durable = self._position
            self._part.durable(self._position)
        os.ftruncate(self._descriptor, self._position)
        self._held = self._position


def file_size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def file_sha256(path: Path) -> str:
    """Digest of a file, in hex."""
    digest = hashlib.sha256()
    for chunk in storage.chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Delete a file, where there is one, raising `StorageError`."""
    with _disk(path):
        path.unlink(missing_ok=True)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Tell the disk's errors from those of the network, which may pass."""
    try:
        yield
    except OSError as e:
        raise StorageError(
            f"{path} cannot be written: {e.strerror}", hint="check free space and permissions"
        ) from e
