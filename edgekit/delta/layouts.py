"""Layouts: where tensors lie inside an entry, so that a new one is set against the old of its name.

Only where they begin is looked for, and nothing is believed of it but as a guess: what a layout
says wrongly makes a delta larger, never wrong. ONNX files are walked as protobuf without being
loaded; a file of another format, or a damaged one, has no tensors here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Fields of ModelProto, GraphProto and TensorProto in onnx.proto3.
_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _NAME, _RAW_DATA = 2, 8, 9
# TensorProto.DataType to bytes of an element; others count as bytes.
_ONNX_WIDTHS = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_SAFETENSORS_WIDTHS = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
}
_LENGTH_DELIMITED, _VARINT = 2, 0
_FIXED = {1: 8, 5: 4}


class Tensor(NamedTuple):
    """The values of one tensor inside an entry: where they begin, and bytes of one element."""

    offset: int
    size: int
    width: int


def tensors_of(name: str, raw: memoryview) -> dict[str, Tensor]:
    """Tensors of an entry by name, in the order of the file; empty where none are known.

    Args:
        name: of the entry; its ending says what it is.
        raw: its bytes.
    """
    try:
        if name.endswith(".onnx"):
            return _of_onnx(raw)
        if name.endswith(".safetensors"):
            return _of_safetensors(raw)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error):
        # Damaged, or not what its name says; it is then compared as any other bytes.
        return {}
    return {}


def _of_onnx(raw: memoryview) -> dict[str, Tensor]:
    found = {}
    for graph, start, stop in _fields(raw, 0, len(raw)):
        if graph != _GRAPH:
            continue
        for field, begin, end in _fields(raw, start, stop):
            if field == _INITIALIZER:
                name, tensor = _initializer(raw, begin, end)
                if tensor is not None:
                    found[name] = tensor
    return found


def _initializer(raw: memoryview, begin: int, end: int) -> tuple[str, Tensor | None]:
    name, width, place = "", 1, None
    for field, start, stop in _fields(raw, begin, end):
        if field == _DATA_TYPE:
            width = _ONNX_WIDTHS.get(raw[start], 1)
        elif field == _NAME:
            name = bytes(raw[start:stop]).decode("utf-8")
        elif field == _RAW_DATA:
            place = start, stop - start
    return name, None if place is None else Tensor(*place, width)


def _fields(raw: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field of a protobuf message."""
    while position < end:
        tag, position = _varint(raw, position)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            size, position = _varint(raw, position)
            stop = position + size
        elif kind == _VARINT:
            stop = _varint(raw, position)[1]
        else:
            stop = position + _FIXED[kind]
        if stop > end:
            raise ValueError("a field is longer than its message")
        yield tag >> 3, position, stop
        position = stop


def _varint(raw: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = raw[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position


def _of_safetensors(raw: memoryview) -> dict[str, Tensor]:
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(bytes(raw[8 : 8 + length]))
    found = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + int(offset) for offset in facts["data_offsets"])
        if not 0 <= begin <= end <= len(raw):
            raise ValueError("a tensor lies outside of the file")
        width = _SAFETENSORS_WIDTHS.get(facts["dtype"], 1)
        found[name] = Tensor(begin, end - begin, width)
    return dict(sorted(found.items(), key=lambda item: item[1].offset))
