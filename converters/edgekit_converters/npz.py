"""Npz: the arrays of a `.npz` file, checked against their checksums and left on disk.

What is stored as it is (`numpy.savez`) is read where it lies in the file. What is compressed, or in
Fortran order, is written once to a scratch folder in the order of its samples. Either way the file
is streamed once, and memory holds one chunk of it. Nothing is unpickled.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from edgekit.errors import DataError
from edgekit_converters.rows import CHUNK_BYTES, RowFile, Rows, keep

_SUFFIX = ".npy"
# Larger pieces than elsewhere: each takes one read for every place in a sample.
_TURN_BYTES = 32 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class _Header:
    """What an entry says of its array; `size_bytes` counts the header itself."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    size_bytes: int

    @property
    def values_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def read(path: Path, *, scratch: Path) -> dict[str, Rows]:
    """The arrays by name, in the order of the file; axis 0 of each counts samples.

    Args:
        scratch: a folder on the disk for values that cannot be read where they lie.

    Raises:
        DataError: it is no `.npz` file, damaged, or holds something else than plain arrays.
        StorageError: the scratch folder is full or cannot be written.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            file = RowFile(raw.fileno(), name=str(path))
            return {
                entry.filename.removesuffix(_SUFFIX): _array(file, raw, archive, entry, scratch)
                for entry in archive.infolist()
            }
    except OSError as e:
        raise DataError(
            f"data {path} cannot be read: {e.strerror or e}",
            hint="give a .npz file or a folder of pictures",
        ) from e
    except _DAMAGED as e:
        raise DataError(
            f"data {path} is not a .npz file of plain arrays, or is cut off: {e}",
            hint="write it with numpy.savez(path, INPUT=…, labels=…)",
        ) from e


def _array(
    file: RowFile, raw: IO[bytes], archive: zipfile.ZipFile, entry: zipfile.ZipInfo, scratch: Path
) -> Rows:
    offset = 0
    with archive.open(entry) as stream:
        header = _header(stream, entry)
        if entry.compress_type == zipfile.ZIP_STORED:
            offset = _offset(raw, entry) + header.size_bytes
            # zipfile compares the checksum at the end of an entry.
            deque(_pieces(stream), maxlen=0)
        else:
            file = keep(_pieces(stream), scratch=scratch)
    if header.fortran:
        file, offset = keep(_in_order_of_samples(file, offset, header), scratch=scratch), 0
    return Rows(file, offset=offset, shape=header.shape, dtype=header.dtype)


def _header(stream: IO[bytes], entry: zipfile.ZipInfo) -> _Header:
    version = npy.read_magic(stream)
    if version not in _READERS:
        raise ValueError(f"{entry.filename} has version {version} of the format")
    shape, fortran, dtype = _READERS[version](stream)
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise ValueError(f"{entry.filename} holds {dtype}, no plain values")
    if shape == ():
        raise ValueError(f"{entry.filename} is a scalar; axis 0 must count samples")
    header = _Header(shape, fortran and len(shape) > 1, dtype, stream.tell())
    if min(shape) < 0 or header.size_bytes + header.values_bytes != entry.file_size:
        raise ValueError(f"{entry.filename} has not the size that its header says")
    return header


def _offset(raw: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the content of a stored entry begins; its local header has a length of its own."""
    raw.seek(entry.header_offset)
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
    return entry.header_offset + _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(CHUNK_BYTES):
        yield piece


def _in_order_of_samples(file: RowFile, offset: int, header: _Header) -> Iterator[memoryview]:
    """Values in C order. In Fortran order those of all samples at one place stand together."""
    count, inner = header.shape[0], header.shape[1:]
    places, item = prod(inner), header.dtype.itemsize
    step = max(1, _TURN_BYTES // max(places * item, 1))
    for start in range(0, count, step):
        many = min(step, count - start)
        # In the file the last axis varies slowest, so axes come reversed.
        columns = np.empty((*reversed(inner), many), header.dtype)
        view = columns.reshape(-1).view(np.uint8).data
        for place in range(places):
            at = offset + (place * count + start) * item
            file.read_into(view[place * many * item : (place + 1) * many * item], at)
        yield np.ascontiguousarray(columns.T).reshape(-1).view(np.uint8).data
