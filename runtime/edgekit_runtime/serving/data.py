"""Tensor data on the wire: JSON numbers, raw little-endian values, and length-prefixed strings.

FP16 has no JSON form in the protocol, and is taken and given as raw values only.
"""

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

LENGTH_BYTES = 4


def from_json(raw: msgspec.Raw, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """An array from JSON data, flat or nested, raising `RequestError` that names the tensor."""
    if spec.datatype == "FP16":
        raise RequestError(
            f"input {spec.name!r} is FP16, which JSON does not carry",
            hint="send it as binary data, with binary_data_size",
        )
    try:
        values = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise _no_list(spec) from e
    return from_values(values, spec, shape)


def from_values(values: Any, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """An array from a list of values, flat or nested, or from an array of the right datatype.

    Values must be what the datatype can hold: 300 is no UINT8, 1.5 no integer, 1 no BOOL. Elements
    of BYTES are text or bytes. Raises `RequestError` that names the tensor.
    """
    dtype = DTYPES[spec.datatype]
    try:
        given = _strings(values, spec) if spec.datatype == "BYTES" else np.array(values)
        if spec.datatype == "UINT64" and given.dtype.kind == "f":
            given = _unsigned(values)
    except (ValueError, OverflowError, RecursionError) as e:
        raise _no_list(spec) from e
    if given.size != math.prod(shape):
        raise RequestError(
            f"input {spec.name!r} has {given.size} values, shape {list(shape)} takes"
            f" {math.prod(shape)}"
        )
    # An array may hold NaN, which no JSON can.
    exact = spec.datatype == "BYTES" or (isinstance(values, np.ndarray) and given.dtype == dtype)
    if not (exact or _holds(dtype, given)):
        raise RequestError(f"input {spec.name!r}: data has values that are not {spec.datatype}")
    return given.astype(dtype, copy=False).reshape(shape)


def _no_list(spec: TensorSpec) -> RequestError:
    return RequestError(f"input {spec.name!r}: data is not a list of {spec.datatype}")


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
        return b"".join(len(item).to_bytes(LENGTH_BYTES, "little") + item for item in array.flat)
    if array.nbytes <= COPY_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# Up to this size one copy is cheaper than one more piece to send.
COPY_BYTES = 16384


def classes(array: NDArray[Any], *, count: int, labels: Sequence[str] = ()) -> NDArray[Any]:
    """The best classes of an output, best first, as BYTES `score:index[:label]` (Triton's form).

    Args:
        array: scores [n, ...], of which what follows axis 0 counts as one row; or [c].
        count: how many are told of each row, at most all.
        labels: names of the classes; one that has none stays without.

    Returns:
        Strings [n, k], or [k] for scores [c]. Equal scores rank by their index; NaN ranks last.
        Scores are written in the fewest digits that read back as the same number.

    Raises:
        RequestError: a row has more than `MAX_CLASSES` values, and is no list of classes.
    """
    rows = array.reshape(1 if array.ndim < 2 else len(array), -1)
    if rows.shape[1] > MAX_CLASSES:
        raise RequestError(
            f"an output with {rows.shape[1]} values a sample is not classified, at most"
            f" {MAX_CLASSES} are"
        )
    count = min(count, rows.shape[1])
    ranked = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    # Read backwards, a stable sort of the mirrored rows leaves equal scores in their order.
    mirrored = np.argsort(ranked[:, ::-1], axis=1, kind="stable")[:, ::-1]
    order = rows.shape[1] - 1 - mirrored[:, :count]
    found = [
        _class(row[index], int(index), labels)
        for row, best in zip(rows, order, strict=True)
        for index in best
    ]
    return _array(found).reshape((count,) if array.ndim < 2 else (len(array), count))


MAX_CLASSES = 65536


def _class(score: Any, index: int, labels: Sequence[str]) -> bytes:
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{score!s}:{index}{label}".encode()


def from_strings(raw: memoryview, shape: Sequence[int], *, name: str) -> NDArray[Any]:
    """BYTES elements, each a little-endian 32-bit length and that many bytes."""
    items: list[bytes] = []
    position, count = 0, math.prod(shape)
    while position < len(raw) and len(items) < count:
        start = position + LENGTH_BYTES
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


def _strings(values: Any, spec: TensorSpec) -> NDArray[Any]:
    flat: list[bytes] = []

    def walk(value: Any) -> None:
        if isinstance(value, (list, np.ndarray)):
            for item in value:
                walk(item)
        elif isinstance(value, str):
            flat.append(value.encode())
        elif isinstance(value, bytes):
            flat.append(value)
        else:
            raise _no_list(spec)

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
