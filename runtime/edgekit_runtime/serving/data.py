"""Tensor data on the wire: JSON numbers, raw little-endian values, and length-prefixed strings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.tensors import DTYPES

_LENGTH_BYTES = 4


def from_json(raw: msgspec.Raw, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """An array from JSON data, flat or nested, raising `RequestError` that names the tensor.

    Values must be what the datatype can hold: 300 is no UINT8, 1.5 no integer, 1 no BOOL.
    """
    dtype = DTYPES[spec.datatype]
    try:
        values = msgspec.json.decode(raw)
        if spec.datatype == "BYTES":
            return _strings(values, spec.name).reshape(shape)
        given = np.array(values)
        if spec.datatype == "UINT64" and given.dtype.kind == "f":
            given = _unsigned(values)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as e:
        raise RequestError(f"input {spec.name!r}: data is not a list of {spec.datatype}") from e
    if given.size != math.prod(shape):
        raise RequestError(
            f"input {spec.name!r} has {given.size} values, shape {list(shape)} takes"
            f" {math.prod(shape)}"
        )
    if not _holds(dtype, given):
        raise RequestError(f"input {spec.name!r}: data has values that are not {spec.datatype}")
    return given.astype(dtype).reshape(shape)


def to_json(array: NDArray[Any], *, name: str) -> list[Any]:
    """Flat JSON data, raising `RequestError` for values that JSON has no words for."""
    if array.dtype == object:
        try:
            return [item.decode() for item in array.reshape(-1)]
        except UnicodeDecodeError as e:
            raise RequestError(f"output {name!r} is not UTF-8; ask for it as binary_data") from e
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            f"output {name!r} holds NaN or infinity, which JSON cannot carry",
            hint="ask for it as binary_data",
        )
    values: list[Any] = array.reshape(-1).tolist()
    return values


def to_binary(array: NDArray[Any]) -> bytes | memoryview:
    """Raw data: small arrays as bytes, large ones as a view of their memory."""
    if array.dtype == object:
        return b"".join(len(item).to_bytes(_LENGTH_BYTES, "little") + item for item in array.flat)
    if array.nbytes <= COPY_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# Up to this size one copy is cheaper than one more piece to send.
COPY_BYTES = 16384


def from_strings(raw: memoryview, shape: Sequence[int], *, name: str) -> NDArray[Any]:
    """BYTES elements, each a little-endian 32-bit length and that many bytes."""
    items: list[bytes] = []
    position, count = 0, math.prod(shape)
    while position < len(raw) and len(items) < count:
        start = position + _LENGTH_BYTES
        end = start + int.from_bytes(raw[position:start], "little")
        if end > len(raw):
            break
        items.append(bytes(raw[start:end]))
        position = end
    if position != len(raw) or len(items) != count:
        raise RequestError(f"input {name!r}: its bytes are not {count} strings with their lengths")
    return _array(items).reshape(shape)


def _unsigned(values: Any) -> NDArray[Any]:
    """Integers of which some fit no int64, which numpy would otherwise round to float64."""
    exact = np.array(values, dtype=object)
    whole = all(type(value) is int for value in exact.flat)
    return exact.astype(np.uint64) if whole else exact


def _strings(values: Any, name: str) -> NDArray[Any]:
    flat: list[bytes] = []

    def walk(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, str):
            flat.append(value.encode())
        else:
            raise RequestError(f"input {name!r}: data is not a list of BYTES")

    walk(values)
    return _array(flat)


def _array(items: Sequence[bytes]) -> NDArray[Any]:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _holds(dtype: np.dtype[Any], given: NDArray[Any]) -> bool:
    if dtype.kind == "b":
        return given.dtype.kind == "b"
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return given.dtype.kind in "iuf" and bool(np.isfinite(given.astype(dtype)).all())
    if given.dtype.kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return int(given.min()) >= limits.min and int(given.max()) <= limits.max
