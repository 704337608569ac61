"""Shm: system shared memory that clients register, so that tensors need not pass a socket.

A client owns its memory: it may shrink the file at any time, and reading a mapped page that is gone
kills a process (SIGBUS). The daemon therefore maps nothing. It copies by `preadv` and `pwritev`,
where what is missing is an error that the client is told of, and it never unlinks a file.

A file is opened once, at registration: a name below /dev/shm without a folder in it, no link, a
regular file on the tmpfs that is mounted there, owned by the user who registers it (root may
register any). What one user registered no other can see or use, because reading a region into an
input and having it echoed would read it. Regions belong to the server, not to a connection, and
stay until they are unregistered or the server ends.

Source: Triton's shared memory extension of Open Inference Protocol v2.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import msgspec

from edgekit.errors import RequestError
from edgekit_runtime.serving.form import Stretch

FOLDER = Path("/dev/shm")  # noqa: S108 - where the protocol's keys lie
MAX_NAME_CHARS = 255
ROOT = 0


class RegionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What clients may register, all together.

    Attributes:
        regions: registered at once; each keeps a descriptor open.
        request_bytes: that the inputs of one request may have in shared memory.
    """

    regions: int = 128
    request_bytes: int = 64 << 20


class Registration(msgspec.Struct, frozen=True):
    """The body of a register request: a part of a file below /dev/shm."""

    key: str
    byte_size: int
    offset: int = 0


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """A registered part of a file, as the status page shows it."""

    name: str
    key: str
    offset: int
    byte_size: int


class RegionTable:
    """Every region of a server, by the user who registered it. Lives on the event loop.

    Args:
        limits: what clients may register.
        folder: where keys are looked up; a tmpfs.
    """

    def __init__(self, *, limits: RegionLimits | None = None, folder: Path = FOLDER) -> None:
        self.limits = limits or RegionLimits()
        self.folder = folder
        self._users: dict[int, Regions] = {}

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    def of(self, uid: int) -> Regions:
        """What a user registered."""
        if uid not in self._users:
            self._users[uid] = Regions(self, uid)
        return self._users[uid]

    def close(self) -> None:
        """Forget every region."""
        for regions in self._users.values():
            regions.unregister()


class Regions:
    """The regions of one user.

    Args:
        table: what they are part of.
        uid: whose files may be registered; 0, root, may register any.
    """

    def __init__(self, table: RegionTable, uid: int) -> None:
        self._table = table
        self._uid = uid
        self._open: dict[str, tuple[Region, int]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def register(self, name: str, wanted: Registration) -> None:
        """Open the file of a region, raising `RequestError` where it may not be used."""
        if not (0 < len(name) <= MAX_NAME_CHARS and name.isprintable()):
            raise RequestError(
                f"a region's name has 1 to {MAX_NAME_CHARS} printable characters, not {name!r}"
            )
        if name in self._open:
            raise RequestError(f"region {name!r} is registered already; unregister it first")
        if len(self._table) >= self._table.limits.regions:
            raise RequestError(
                f"{self._table.limits.regions} regions are registered, which is as many as there"
                " may be; unregister one"
            )
        if wanted.offset < 0 or wanted.byte_size < 1:
            raise RequestError(f"region {name!r}: offset is at least 0 and byte_size at least 1")
        descriptor = _open(self._table.folder, wanted.key, uid=self._uid)
        size = os.fstat(descriptor).st_size
        if wanted.offset + wanted.byte_size > size:
            os.close(descriptor)
            raise RequestError(
                f"region {name!r} ends at {wanted.offset + wanted.byte_size}, {wanted.key!r} has"
                f" {size} bytes"
            )
        region = Region(name=name, key=wanted.key, offset=wanted.offset, byte_size=wanted.byte_size)
        self._open[name] = region, descriptor

    def unregister(self, name: str | None = None) -> None:
        """Forget one region, or all; one that is not there is forgotten already."""
        for known in list(self._open) if name is None else [name]:
            _, descriptor = self._open.pop(known, (None, None))
            if descriptor is not None:
                os.close(descriptor)

    def status(self, name: str | None = None) -> list[Region]:
        """One region, raising `RequestError` where it is not registered, or all."""
        if name is None:
            return [region for region, _ in self._open.values()]
        return [self._find(name)[0]]

    def check_total(self, size_bytes: int) -> None:
        """Raise `RequestError` where a request's inputs have more in regions than may be copied."""
        limit = self._table.limits.request_bytes
        if size_bytes > limit:
            raise RequestError(
                f"the inputs have {size_bytes} bytes in shared memory, at most {limit} are taken"
            )

    def read(self, place: Stretch, into: memoryview, *, what: str) -> None:
        """Fill contiguous memory of the size of `place`; `RequestError` names the tensor `what`."""
        descriptor, start = self._resolve(place, what)
        got = os.preadv(descriptor, [into], start)
        if got != place.size_bytes:
            raise _shrunk(place, what)

    def write(self, place: Stretch, data: bytes | memoryview, *, what: str) -> None:
        """Put bytes at the beginning of `place`; `RequestError` names the tensor `what`.

        Where the client shrinks the file between the check and the write, the write grows it again,
        within the region at most.
        """
        descriptor, start = self._resolve(place, what)
        size_bytes = len(data)
        if size_bytes > place.size_bytes:
            raise RequestError(
                f"{what} has {size_bytes} bytes, the request has {place.size_bytes} for it in"
                f" region {place.region!r}"
            )
        # A write past its end would grow a file that the client had shrunk.
        if os.fstat(descriptor).st_size < start + size_bytes:
            raise _shrunk(place, what)
        try:
            put = os.pwritev(descriptor, [data], start)
        except OSError as e:
            raise RequestError(
                f"{what} cannot be put into region {place.region!r}: {e.strerror}"
            ) from e
        if put != size_bytes:
            raise RequestError(
                f"{what} cannot be put into region {place.region!r}: {self._table.folder} is full"
            )

    def _resolve(self, place: Stretch, what: str) -> tuple[int, int]:
        """Descriptor and position in the file, checked against the region."""
        region, descriptor = self._find(place.region, what=what)
        if place.size_bytes < 0 or not 0 <= place.offset <= region.byte_size - place.size_bytes:
            raise RequestError(
                f"{what}: {place.size_bytes} bytes at {place.offset} are not within region"
                f" {place.region!r}, which has {region.byte_size}"
            )
        return descriptor, region.offset + place.offset

    def _find(self, name: str, *, what: str = "") -> tuple[Region, int]:
        found = self._open.get(name)
        if found is None:
            begin = f"{what}: " if what else ""
            raise RequestError(f"{begin}no shared memory is registered as region {name!r}")
        return found


def _shrunk(place: Stretch, what: str) -> RequestError:
    return RequestError(
        f"{what}: the file of region {place.region!r} ends before byte"
        f" {place.offset + place.size_bytes} of it; it was made smaller since it was registered"
    )


def _open(folder: Path, key: str, *, uid: int) -> int:
    """A descriptor of the file that a key names, raising `RequestError` where it may not be used.

    A key is a name as shm_open(3) takes it: at most one slash, at its beginning.
    """
    name = key.removeprefix("/")
    if not (
        name
        and name.isprintable()
        and len(name.encode()) <= MAX_NAME_CHARS
        and "/" not in name
        and not name.startswith(".")
    ):
        raise RequestError(
            f"key {key!r} is not the name of a file in {folder}",
            hint="write it as shm_open takes it: one name, a slash before it at most",
        )
    # A FIFO would keep the loop waiting, were it opened to block.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(folder / name, flags)
    except OSError as e:
        reason = "it is a link" if e.errno == errno.ELOOP else e.strerror
        raise RequestError(f"shared memory {key!r} cannot be opened: {reason}") from e
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_dev != folder.stat().st_dev:
            raise RequestError(f"shared memory {key!r} is not a regular file of {folder}")
        if uid not in (ROOT, found.st_uid):
            raise RequestError(
                f"shared memory {key!r} belongs to user {found.st_uid}, not to you, {uid}"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
