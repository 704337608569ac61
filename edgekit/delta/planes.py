"""Differences of little-endian elements, folded and split so that they compress.

A difference is taken modulo the element's width, on the bits as an unsigned number: close floats of
one sign have close bits. Folding (0, -1, 1, -2, … become 0, 1, 2, 3, …) clears the upper bytes of
small differences of either sign; planes put all lowest bytes first, then all second ones, and so
on. Where few bytes differ at all, gaps between those that do and their values stand for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.delta.form import FAR

Unsigned = NDArray[np.unsignedinteger[Any]]
_TYPES: dict[int, np.dtype[Any]] = {w: np.dtype(f"<u{w}") for w in (1, 2, 4, 8)}


def elements(raw: bytes | memoryview, width: int) -> Unsigned:
    """Bytes as unsigned little-endian numbers of `width` bytes: [len / width]."""
    return np.frombuffer(raw, _TYPES[width])


def differences(new: bytes | memoryview, old: bytes | memoryview, width: int) -> Unsigned:
    """Folded differences of elements: [len / width]."""
    step: Unsigned = elements(new, width) - elements(old, width)
    sign = np.negative(step >> (8 * width - 1))
    folded: Unsigned = (step << 1) ^ sign
    return folded


def restore(old: bytes, folded: Unsigned) -> bytes:
    """The new bytes of old ones and folded differences of as many elements."""
    width = folded.dtype.itemsize
    step: Unsigned = (folded >> 1) ^ np.negative(folded & 1)
    new: Unsigned = elements(old, width) + step
    return new.tobytes()


def sparse(folded: Unsigned) -> tuple[bytes, bytes]:
    """The gap bytes and the value bytes of folded differences of single bytes.

    The gap before a difference counts the equal bytes since the one before: as many bytes of `FAR`
    as go into it, then the rest.
    """
    places = np.flatnonzero(folded)
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // FAR + 1) - 1
    out = np.full(ends[-1] + 1 if len(ends) else 0, FAR, np.uint8)
    out[ends] = gaps % FAR
    return out.tobytes(), folded[places].tobytes()


def dense(gaps: bytes | memoryview, values: bytes | memoryview, length: int) -> Unsigned:
    """The folded differences of `length` bytes, of which these differ.

    Raises:
        ValueError: the gaps do not fit the values or the length.
    """
    steps = np.frombuffer(gaps, np.uint8)
    ends = np.flatnonzero(steps != FAR)
    if len(ends) != len(values) or not len(ends) or ends[-1] != len(steps) - 1:
        raise ValueError("as many gaps as values are needed")
    places = np.cumsum(steps, dtype=np.int64)[ends] + np.arange(len(ends))
    if places[-1] >= length:
        raise ValueError("a gap leads beyond the end")
    folded = np.zeros(length, np.uint8)
    folded[places] = np.frombuffer(values, np.uint8)
    return folded


def joined(parts: Sequence[Unsigned], width: int) -> Unsigned:
    """Elements of `width` bytes one after the other, also of no parts."""
    return np.concatenate((np.empty(0, _TYPES[width]), *parts))


def split(folded: Unsigned) -> bytes:
    """Elements as planes of bytes, lowest first."""
    width = folded.dtype.itemsize
    return folded.view(np.uint8).reshape(-1, width).T.tobytes()


def merge(raw: bytes | memoryview, width: int) -> Unsigned:
    """The elements whose planes these are: [len / width]."""
    rows = np.frombuffer(raw, np.uint8).reshape(width, len(raw) // width)
    return np.ascontiguousarray(rows.T).reshape(-1).view(_TYPES[width])
