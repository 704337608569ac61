"""The container of a bundle: a zip file in a strict form.

Entries are stored, aligned to 4096 bytes, and follow each other without gaps; local headers and
the central directory say the same. A reader accepts only that form, so that two readers cannot
disagree on what a bundle holds, and it checks its limits before it allocates anything. What the
format leaves open (who made the file, say) must be the same in every entry, so that no byte of a
file can change unseen. docs/bundle.md gives the format to the byte.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgekit import storage
from edgekit.errors import BundleError, IntegrityError
from edgekit.manifest import ENTRY

FIRST = "manifest.json"
ALIGNMENT = 4096
MAX_ENTRIES = 4096
MAX_ENTRY_BYTES = 4 << 30
MAX_FILE_BYTES = 8 << 30

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")

_DATE = 0x21  # 1980-01-01
_ATTRIBUTES = 0o100644 << 16
_MADE_BY = 0x031E  # Unix, 3.0
_VERSION = 10
_VERSION64 = 45
_VERSIONS = (_VERSION, 20)  # without zip64; some writers always say 2.0
_LIMIT32 = 0xFFFFFFFF
_PADDING = 0xD935
_ZIP64 = 0x0001


class Entry(NamedTuple):
    """Where an entry's bytes lie in the file."""

    name: str
    offset: int
    size: int
    crc: int


def order(names: Iterable[str]) -> list[str]:
    """The one order of entries: the manifest, then all others by name."""
    return sorted(names, key=lambda name: (name != FIRST, name))


def check_names(names: Iterable[str]) -> None:
    """Refuse names that no entry may have, and a name that is a folder of another."""
    known = set(names)
    for name in known:
        if re.match(ENTRY, name) is None:
            raise BundleError(f"an entry has the name {name[:200]!r}, which is not allowed")
        parent = name.rpartition("/")[0]
        while parent:
            if parent in known:
                raise BundleError(f"{parent!r} is an entry and the folder of {name!r}")
            parent = parent.rpartition("/")[0]
    if len(known) > MAX_ENTRIES:
        raise BundleError(f"{len(known)} entries, a bundle has at most {MAX_ENTRIES}")


def write(file: BinaryIO, sources: Mapping[str, bytes | Path]) -> None:
    """Write a container to an empty, seekable file.

    Args:
        file: opened for reading and writing, at position 0.
        sources: entry name to its bytes, or to the file that holds them.

    Raises:
        BundleError: a name or a size breaks a limit, or a file changed meanwhile.
        StorageError: a source cannot be read.
    """
    check_names(sources)
    headers = []
    for name in order(sources):
        start = file.tell()
        crc, size = _scan(sources[name])
        if size > MAX_ENTRY_BYTES:
            raise BundleError(f"{name} has {size} bytes, an entry at most {MAX_ENTRY_BYTES}")
        file.write(_local_header(name, start=start, size=size, crc=crc))
        if _copy(sources[name], file) != crc:
            raise BundleError(f"{name} changed while it was written", hint="try again")
        headers.append(_central_header(name, start=start, size=size, crc=crc))
        if file.tell() > MAX_FILE_BYTES:
            raise BundleError(f"a bundle has at most {MAX_FILE_BYTES} bytes")
    start = file.tell()
    directory = b"".join(headers)
    file.write(directory)
    file.write(_end(len(headers), start=start, size=len(directory)))


def read(view: mmap.mmap) -> dict[str, Entry]:
    """The entries of a container, in order, or `BundleError` that says what is wrong."""
    count, start, size = _read_end(view)
    entries: dict[str, Entry] = {}
    expected = 0
    position = start
    makers = set()
    for _ in range(count):
        record = _read_central(view, position, limit=start + size)
        position += record.length
        makers.add(record.maker)
        if record.header != expected:
            raise BundleError(
                f"{record.name!r} begins at {record.header}, not at {expected}: a gap or an overlap"
            )
        if record.name in entries:
            raise BundleError(f"{record.name!r} is there twice")
        entry = _read_local(view, record, limit=start)
        entries[record.name] = entry
        expected = entry.offset + entry.size
    if expected != start or position != start + size:
        raise BundleError("the container has bytes that belong to no entry")
    if list(entries) != order(entries):
        raise BundleError(f"entries must come as {FIRST}, then all others by name")
    if len(makers) > 1:
        raise BundleError("entries differ in who made them or in their permissions")
    check_names(entries)
    return entries


def check_crc(view: mmap.mmap, entry: Entry) -> None:
    """Compare an entry with its checksum; for entries that no digest covers."""
    if zlib.crc32(memoryview(view)[entry.offset : entry.offset + entry.size]) != entry.crc:
        raise IntegrityError(f"{entry.name} does not match its CRC-32")


def open_map(path: Path) -> mmap.mmap:
    """Map a file read-only through one descriptor, so that checks and use see the same bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise BundleError(f"cannot be opened: {e.strerror}") from e
    try:
        if os.fstat(descriptor).st_size == 0:
            raise BundleError("is empty")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as e:
        raise BundleError(f"cannot be mapped: {e}") from e
    finally:
        os.close(descriptor)


def save(path: Path, sources: Mapping[str, bytes | Path]) -> None:
    """Write a container at `path`, whole or not at all."""
    with storage.replacing(path) as file:
        write(file, sources)


class _Record(NamedTuple):
    """One record of the central directory, checked.

    `maker` is what the format leaves open: who made the file, and how permissions are written.
    """

    name: str
    header: int
    size: int
    crc: int
    version: int
    padding: bytes | None
    maker: tuple[int, int]
    length: int


def _read_end(view: mmap.mmap) -> tuple[int, int, int]:
    """Number of entries, and where the central directory begins and how long it is."""
    if len(view) > MAX_FILE_BYTES:
        raise BundleError(f"the file has {len(view)} bytes, a bundle at most {MAX_FILE_BYTES}")
    tail = len(view) - _END.size
    if tail < 0 or view[tail : tail + 4] != b"PK\x05\x06":
        raise BundleError("this is not a bundle, or one that is cut off: no zip directory ends it")
    _, disk, disk_start, on_disk, count, size, start, comment = _END.unpack_from(view, tail)
    if disk or disk_start or comment or on_disk != count:
        raise BundleError("a bundle has no comment and lies in one file")
    if start == _LIMIT32:
        tail -= _LOCATOR.size + _END64.size
        if tail < 0:
            raise BundleError("the zip64 end record is missing")
        maker = _END64.unpack_from(view, tail)[2]
        start = _END64.unpack_from(view, tail)[9]
        if start < _LIMIT32 or view[tail:] != _end(count, start=start, size=size, maker=maker):
            raise BundleError("the zip64 end record differs from the end record, or is not needed")
    if count > MAX_ENTRIES or start + size != tail:
        raise BundleError(f"the directory does not fit: {count} entries, {size} bytes at {start}")
    return count, start, size


def _read_central(view: mmap.mmap, position: int, *, limit: int) -> _Record:
    if position + _CENTRAL.size > limit:
        raise BundleError("the directory is cut off")
    (magic, made_by, version, flags, method, time, date, crc, stored, size, name_length,
     extra_length, comment, disk, internal, external, header,
    ) = _CENTRAL.unpack_from(view, position)  # fmt: skip
    begin = position + _CENTRAL.size
    end = begin + name_length + extra_length
    name = view[begin : begin + name_length].decode("ascii", errors="replace")
    if magic != b"PK\x01\x02" or end > limit:
        raise BundleError("the directory is damaged")
    if re.match(ENTRY, name) is None:
        raise BundleError(f"an entry has the name {name[:200]!r}, which is not allowed")
    if (flags, method, time, date, comment, disk, internal) != (0, 0, 0, _DATE, 0, 0, 0):
        raise BundleError(f"{name!r} must be stored, without flags and comment, dated 1980-01-01")
    if external not in (_ATTRIBUTES, 0o644 << 16) or made_by >> 8 != _MADE_BY >> 8:
        raise BundleError(f"{name!r} must be a Unix file with permissions 0644")
    if stored != size:
        raise BundleError(f"{name!r} has two sizes")
    extras = _extras(view[begin + name_length : end], name)
    if size == _LIMIT32 or header == _LIMIT32:
        size, header = _wide(extras.get(_ZIP64, b""), size=size, header=header, name=name)
        fitting: tuple[int, ...] = (_VERSION64,)
    else:
        fitting = _VERSIONS
        if _ZIP64 in extras:
            raise BundleError(f"{name!r} has a zip64 field that it does not need")
    if version not in fitting:
        raise BundleError(f"{name!r} needs version {version} of zip, not one of {fitting}")
    if size > MAX_ENTRY_BYTES:
        raise BundleError(f"{name!r} says it has {size} bytes, an entry at most {MAX_ENTRY_BYTES}")
    padding = extras.get(_PADDING)
    maker = (made_by, external)
    return _Record(name, header, size, crc, version, padding, maker, end - position)


def _wide(zip64: bytes, *, size: int, header: int, name: str) -> tuple[int, int]:
    """Size and position where 32 bits hold one of them not: size twice, then position."""
    numbers = [value for (value,) in struct.iter_unpack("<Q", zip64[: len(zip64) // 8 * 8])]
    large, far = size == _LIMIT32, header == _LIMIT32
    fits = len(zip64) == 16 * large + 8 * far and min(numbers) >= _LIMIT32
    if not fits or (large and numbers[0] != numbers[1]):
        raise BundleError(f"{name!r} has a zip64 field that fits none of its sizes")
    return numbers[0] if large else size, numbers[-1] if far else header


def _read_local(view: mmap.mmap, record: _Record, *, limit: int) -> Entry:
    name = record.name
    begin = record.header + _LOCAL.size
    if begin > limit:
        raise BundleError(f"{name!r} runs into the directory")
    (magic, version, flags, method, time, date, crc, stored, size, name_length,
     extra_length) = _LOCAL.unpack_from(view, record.header)  # fmt: skip
    data = begin + name_length + extra_length
    if data + record.size > limit:
        raise BundleError(f"{name!r} runs into the directory")
    extras = _extras(view[begin + name_length : data], name)
    large = record.size >= _LIMIT32
    said = (magic, flags, method, time, date, crc, stored, size)
    size32 = _LIMIT32 if large else record.size
    if said != (b"PK\x03\x04", 0, 0, 0, _DATE, record.crc, size32, size32):
        raise BundleError(f"the local header of {name!r} differs from the directory")
    if view[begin : begin + name_length] != name.encode("ascii"):
        raise BundleError(f"the local header of {name!r} has another name")
    # A position beyond 4 GiB needs zip64 in the directory alone.
    if version != record.version and not (record.header >= _LIMIT32 and version in _VERSIONS):
        raise BundleError(f"the local header of {name!r} has another version")
    if extras.get(_ZIP64) != (struct.pack("<QQ", record.size, record.size) if large else None):
        raise BundleError(f"the local header of {name!r} has another zip64 size")
    if record.padding not in (None, extras.get(_PADDING)):
        raise BundleError(f"the padding of {name!r} differs from the directory")
    if data % ALIGNMENT:
        raise BundleError(f"the data of {name!r} is not aligned to {ALIGNMENT} bytes")
    return Entry(name, data, record.size, record.crc)


def _extras(raw: bytes, name: str) -> dict[int, bytes]:
    """The extra fields of a header: padding and zip64 sizes, each at most once, nothing else."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(raw):
        if position + 4 > len(raw):
            raise BundleError(f"{name!r} has an extra field that is cut off")
        kind, length = struct.unpack_from("<HH", raw, position)
        body = raw[position + 4 : position + 4 + length]
        if kind not in (_ZIP64, _PADDING) or kind in found or len(body) != length:
            raise BundleError(f"{name!r} has an extra field 0x{kind:04x} that is not allowed")
        if kind == _PADDING and (body[:2] != struct.pack("<H", ALIGNMENT) or any(body[2:])):
            raise BundleError(f"the padding of {name!r} holds something else than zeros")
        found[kind] = body
        position += 4 + length
    return found


def _local_header(name: str, *, start: int, size: int, crc: int) -> bytes:
    raw = name.encode("ascii")
    large = size >= _LIMIT32
    extra = struct.pack("<HHQQ", _ZIP64, 16, size, size) if large else b""
    end = start + _LOCAL.size + len(raw) + len(extra) + 6
    padding = -end % ALIGNMENT
    extra += struct.pack("<HHH", _PADDING, 2 + padding, ALIGNMENT) + bytes(padding)
    size32 = _LIMIT32 if large else size
    version = _VERSION64 if large or start >= _LIMIT32 else _VERSION
    head = _LOCAL.pack(
        b"PK\x03\x04", version, 0, 0, 0, _DATE, crc, size32, size32, len(raw), len(extra)
    )
    return head + raw + extra


def _central_header(name: str, *, start: int, size: int, crc: int) -> bytes:
    raw = name.encode("ascii")
    large, far = size >= _LIMIT32, start >= _LIMIT32
    extra = struct.pack("<QQ", size, size) if large else b""
    extra += struct.pack("<Q", start) if far else b""
    if extra:
        extra = struct.pack("<HH", _ZIP64, len(extra)) + extra
    size32 = _LIMIT32 if large else size
    head = _CENTRAL.pack(
        b"PK\x01\x02", _MADE_BY, _VERSION64 if extra else _VERSION, 0, 0, 0, _DATE, crc,
        size32, size32, len(raw), len(extra), 0, 0, 0, _ATTRIBUTES, _LIMIT32 if far else start,
    )  # fmt: skip
    return head + raw + extra


def _end(count: int, *, start: int, size: int, maker: int = _MADE_BY) -> bytes:
    far = start >= _LIMIT32
    zip64 = b""
    if far:
        zip64 = _END64.pack(
            b"PK\x06\x06", _END64.size - 12, maker, _VERSION64, 0, 0, count, count, size, start
        ) + _LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    start32 = _LIMIT32 if far else start
    return zip64 + _END.pack(b"PK\x05\x06", 0, 0, count, count, size, start32, 0)


def _scan(source: bytes | Path) -> tuple[int, int]:
    """CRC-32 and size of a source."""
    crc = size = 0
    for chunk in _chunks(source):
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
    return crc, size


def _copy(source: bytes | Path, file: BinaryIO) -> int:
    """Write a source and return the CRC-32 of what was written."""
    crc = 0
    for chunk in _chunks(source):
        crc = zlib.crc32(chunk, crc)
        file.write(chunk)
    return crc


def _chunks(source: bytes | Path) -> Iterable[bytes]:
    return [source] if isinstance(source, bytes) else storage.chunks(source)
