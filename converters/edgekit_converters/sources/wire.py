"""Wire: what decoding an ONNX file would cost, counted in its bytes before anything is decoded.

Two bytes of protobuf can become a message of a hundred, so a file of some megabytes can ask for
gigabytes of memory and minutes of time. The scan follows the fields of the ONNX schema through the
mapped file, steps over weights without reading them, and refuses what no real model needs: too many
messages, nodes or structure, or nesting that a recursive reader would not survive.

The encoding is that of https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from edgekit.errors import ModelError

MAX_NODES = 100_000
MAX_ENTRIES = 1_000_000
MAX_STRUCTURE_BYTES = 512 << 20
MAX_DEPTH = 60

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
# Fields whose memory is the size that they have in the file.
_BULK = frozenset({"raw_data", "float_data", "double_data"})
_SCALARS: Mapping[int, bytes] = {
    _VARINT: rb"[\x80-\xff]{0,9}[\x00-\x7f]",
    _FIXED64: rb"[\x00-\xff]{8}",
    _FIXED32: rb"[\x00-\xff]{4}",
}
_KEY = re.compile(rb"[\x80-\xff]{0,4}[\x00-\x7f]")
_SIZE = re.compile(_SCALARS[_VARINT])
_RUN = 0  # no field has this number


@dataclass(frozen=True)
class Census:
    """What a scan counted.

    Attributes:
        nodes: in graphs of every level and in functions.
        entries: messages and strings.
        structure_bytes: bytes of the file without its weights.
        depth: how deep messages nest.
    """

    nodes: int
    entries: int
    structure_bytes: int
    depth: int


def require_bounded(path: Path) -> Census:
    """Scan an ONNX file, raising `ModelError` where it is damaged or over a limit."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _scan(data, str(path))


def _scan(data: mmap.mmap, what: str) -> Census:
    nodes = entries = structure_bytes = deepest = 0
    fields, position, end = _fields(onnx.ModelProto.DESCRIPTOR), 0, len(data)
    outer: list[tuple[Mapping[int, Any], int, int]] = []
    while position < end or outer:
        if position >= end:
            fields, position, end = outer.pop()
            continue
        number, start, stop = _part(data, position, end, what)
        field = fields.get(number)
        structure_bytes += start - position
        if number == _RUN:
            structure_bytes += stop - start
        elif field is None or isinstance(field, str):
            entries += 1
            structure_bytes += 0 if field in _BULK else stop - start
        else:
            entries += 1
            nodes += field is onnx.NodeProto.DESCRIPTOR
            outer.append((fields, stop, end))
            fields, stop, end = _fields(field), start, stop
            deepest = max(deepest, len(outer))
        position = stop
        if len(outer) > MAX_DEPTH:
            raise ModelError(
                f"{what} nests graphs or attributes more than {MAX_DEPTH} messages deep",
                hint="export the model without so many nested If, Loop or Scan",
            )
        if nodes > MAX_NODES:
            raise ModelError(
                f"{what} has more than {MAX_NODES} nodes",
                hint="export it without unrolled loops, or split it",
            )
        if entries > MAX_ENTRIES or structure_bytes > MAX_STRUCTURE_BYTES:
            raise ModelError(
                f"{what} has more than {MAX_ENTRIES} parts, or"
                f" {MAX_STRUCTURE_BYTES >> 20} MB beside its weights",
                hint="keep weights as raw data, and tables or texts out of the model",
            )
    return Census(nodes, entries, structure_bytes, deepest)


def _part(data: mmap.mmap, position: int, end: int, what: str) -> tuple[int, int, int]:
    """The next part: number of the field, where its content begins and ends.

    Scalar fields of one key in a row are one part with the number `_RUN`: trees hold millions.
    """
    tag = data[position]
    if tag & 0x87 == _LENGTH and position + 1 < end and (size := data[position + 1]) < 0x80:
        # Most fields: key and size in a byte each.
        start, stop, number = position + 2, position + 2 + size, tag >> 3
    else:
        key = _KEY.match(data, position, end)
        if key is None:
            raise _damaged(what, position)
        tag = _unsigned(key[0])
        if tag & 7 in _SCALARS:
            run = _run_of(key[0], tag & 7)(data, position, end)
            if run is None:
                raise _damaged(what, position)
            return _RUN, position, run.end()
        length = _SIZE.match(data, key.end(), end) if tag & 7 == _LENGTH else None
        if length is None:
            raise _damaged(what, position)
        start, number = length.end(), tag >> 3
        stop = start + _unsigned(length[0])
    if stop > end or number == _RUN:
        raise _damaged(what, position)
    return number, start, stop


@cache
def _run_of(key: bytes, kind: int) -> Callable[..., re.Match[bytes] | None]:
    """Matches a field and those of the same key that follow it."""
    return re.compile(b"(?:" + re.escape(key) + _SCALARS[kind] + b"){1,65536}+").match


@cache
def _fields(message: Any) -> Mapping[int, Any]:
    """By number, the message type of a field, or the name of one that is a string or packed."""
    return {f.number: f.message_type or f.name for f in message.fields}


def _unsigned(varint: bytes) -> int:
    value = 0
    for shift, byte in enumerate(varint):
        value |= (byte & 0x7F) << (7 * shift)
    return value


def _damaged(what: str, position: int) -> ModelError:
    return ModelError(
        f"{what} is not an ONNX model, or is cut off: byte {position} begins no field",
        hint="export or download the model again",
    )
