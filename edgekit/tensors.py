"""Named arrays as bytes: the safetensors layout, and compressed with a header for the wire.

A frame that travels over MQTT is `zlib(safetensors)`, its typed header in the safetensors metadata
under `header`. Every reader is told how many bytes a frame may unfold to and stops there.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgekit.errors import MessageError
from edgekit.manifest import canonical

Arrays = dict[str, NDArray[Any]]
H = TypeVar("H")

MAX_HEADER_BYTES = 1 << 20
_LEVEL = 6


def encode(arrays: Mapping[str, NDArray[Any]], *, metadata: dict[str, str] | None = None) -> bytes:
    """Arrays as one safetensors file; the same arrays give the same bytes."""
    contiguous = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    return save(contiguous, metadata=metadata)


def decode(raw: bytes, *, what: str) -> Arrays:
    """Arrays of a safetensors file, raising `MessageError` that names `what`."""
    if len(raw) >= 8 and struct.unpack_from("<Q", raw)[0] > MAX_HEADER_BYTES:
        raise MessageError(f"{what} has a header of more than {MAX_HEADER_BYTES} bytes")
    try:
        return load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise MessageError(f"{what} is not a safetensors file: {e}") from e


def pack(header: msgspec.Struct, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A frame for the wire: arrays with a typed header, compressed."""
    text = canonical(header).decode()
    return zlib.compress(encode(arrays, metadata={"header": text}), _LEVEL)


def unpack(frame: bytes, header: type[H], *, max_bytes: int, what: str) -> tuple[H, Arrays]:
    """Read a frame that unfolds to at most `max_bytes`, else raise `MessageError`."""
    stream = zlib.decompressobj()
    try:
        # One byte more than may come: the end of the stream is seen only beyond its last byte.
        raw = stream.decompress(frame, max_bytes + 1)
    except zlib.error as e:
        raise MessageError(f"{what} is not compressed as it should be: {e}") from e
    if not stream.eof or stream.unused_data or len(raw) > max_bytes:
        raise MessageError(f"{what} is cut off, or unfolds to more than {max_bytes} bytes")
    arrays = decode(raw, what=what)
    try:
        (length,) = struct.unpack_from("<Q", raw)
        metadata = msgspec.json.decode(raw[8 : 8 + length], type=_Head).metadata
        return msgspec.json.decode(metadata["header"].encode(), type=header), arrays
    except (struct.error, KeyError, msgspec.MsgspecError, RecursionError) as e:
        raise MessageError(f"{what} has no valid header: {e}") from e


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over names, datatypes, shapes and values; the identity of a set of weights."""
    return hashlib.sha256(encode(arrays)).hexdigest()


class _Head(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)
