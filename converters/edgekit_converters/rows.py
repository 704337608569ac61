"""Rows: samples that lie one after the other in a file, read only when they are asked for.

A build looks at its data many times and a few samples at a time, so none of it needs to stay in
memory. Rows are read with plain file reads and not mapped: the pages of a mapping count as memory
of the process for as long as nobody else wants them.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, StorageError
from edgekit_runtime.engines.batches import SampleArray

CHUNK_BYTES = 4 << 20
Indices = NDArray[np.intp]


class RowFile:
    """An open file to read at offsets; it is closed with the last of its rows.

    Args:
        descriptor: of the file; it is kept as a duplicate.
        name: of the file, for messages.
    """

    def __init__(self, descriptor: int, *, name: str) -> None:
        self.name = name
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`, raising `DataError` where the file ends."""
        while buffer:
            try:
                got = os.preadv(self._descriptor, [buffer], offset)
            except OSError as e:
                raise DataError(f"data {self.name} cannot be read: {e.strerror}") from e
            if got == 0:
                raise DataError(
                    f"data {self.name} ends before byte {offset + len(buffer)}",
                    hint="it changed while it was read: build again",
                )
            buffer, offset = buffer[got:], offset + got


class Rows:
    """An array [n, ...] in a file, in C order, of which axis 0 is read on demand.

    It is indexed along axis 0 as a numpy array is, by a position, a slice, positions or a mask, and
    then read into memory. `take` chooses without reading. `numpy.asarray(rows)` reads everything.

    Args:
        file: where the values lie.
        offset: of the first value, in bytes.
        shape: of all that is stored there, axis 0 counting samples.
        dtype: of a value; no objects.
        positions: the stored samples that this array consists of, in order; all where None.
    """

    def __init__(
        self,
        file: RowFile,
        *,
        offset: int,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        positions: Indices | None = None,
    ) -> None:
        self._file = file
        self._offset = offset
        self._stored_shape = tuple(shape)
        self._dtype = dtype
        self._positions = np.arange(shape[0]) if positions is None else positions

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._positions), *self._stored_shape[1:])

    @property
    def ndim(self) -> int:
        return len(self._stored_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def row_bytes(self) -> int:
        return prod(self._stored_shape[1:]) * self._dtype.itemsize

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any, /) -> NDArray[Any]:
        if isinstance(index, tuple):
            index, *rest = index
            if rest != [...]:
                raise IndexError("rows are indexed along axis 0 only")
        chosen = np.asarray(self._positions[index])
        values = self._read(chosen.reshape(-1))
        return values.reshape((*chosen.shape, *self._stored_shape[1:]))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[position] for position in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("rows lie in a file: reading them makes a copy")
        values = self[:]
        return values if dtype is None else values.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"Rows({self._file.name}, shape={list(self.shape)}, dtype={self._dtype})"

    def take(self, which: Indices) -> Rows:
        """The rows at these positions; nothing is read."""
        return Rows(
            self._file,
            offset=self._offset,
            shape=self._stored_shape,
            dtype=self._dtype,
            positions=self._positions[which],
        )

    def _read(self, positions: Indices) -> NDArray[Any]:
        values = np.empty((len(positions), *self._stored_shape[1:]), self._dtype)
        if values.size == 0:
            return values
        view = values.reshape(-1).view(np.uint8).data
        # Neighbours in the file are one read.
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        bounds = [0, *breaks.tolist(), len(positions)]
        for first, last in itertools.pairwise(bounds):
            until = last * self.row_bytes
            at = self._offset + int(positions[first]) * self.row_bytes
            self._file.read_into(view[first * self.row_bytes : until], at)
        return values


def keep(pieces: Iterable[bytes | memoryview], *, scratch: Path) -> RowFile:
    """Pieces, one after the other, as a file without a name: it is gone when nobody reads it.

    Args:
        scratch: a folder on the disk that is to hold it.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            return RowFile(file.fileno(), name=f"kept in {scratch}")
    except OSError as e:
        raise StorageError(
            f"samples cannot be kept in {scratch}: {e.strerror}",
            hint="check free space and permissions",
        ) from e


def take(array: SampleArray, which: Indices) -> SampleArray:
    """The samples at these positions; those in a file are not read yet."""
    if isinstance(array, Rows):
        return array.take(which)
    chosen: NDArray[Any] = array[which]
    return chosen


def chunks(array: SampleArray, *, size_bytes: int = CHUNK_BYTES) -> Iterator[NDArray[Any]]:
    """The samples in order, as many at a time as take at most `size_bytes`, one at least."""
    row_bytes = prod(array.shape[1:]) * array.dtype.itemsize
    step = max(1, size_bytes // max(row_bytes, 1))
    for start in range(0, len(array), step):
        yield array[start : start + step]
