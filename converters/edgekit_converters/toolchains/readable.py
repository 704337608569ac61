"""Readable: whether what a tool wrote is a file of its kind at all.

A tool that breaks half-way, or writes down its own error, leaves a file of the right name. Files
are opened by their suffix, before anybody builds on them; what is in them is for others to judge.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from edgekit_converters import tflite
from edgekit_runtime.engines.rknn import MAGIC

_TFLITE = b"TFL3"
# What reading a flatbuffer that is none raises.
_BROKEN = (struct.error, IndexError, OverflowError, TypeError, ValueError, AttributeError)


def is_readable(path: Path) -> bool:
    """Whether a file is what its suffix says; of a suffix that is not known it always is."""
    check = _CHECKS.get(path.suffix)
    return check is None or check(path)


def _is_onnx(path: Path) -> bool:
    try:
        return bool(onnx.load_model(path, load_external_data=False).graph.node)
    except DecodeError:
        return False


def _is_tflite(path: Path) -> bool:
    if path.read_bytes()[4:8] != _TFLITE:
        return False
    try:
        return bool(tflite.operators(path))
    except _BROKEN:
        return False


def _is_rknn(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


_CHECKS: Mapping[str, Callable[[Path], bool]] = {
    ".npz": zipfile.is_zipfile,
    ".onnx": _is_onnx,
    ".rknn": _is_rknn,
    ".tflite": _is_tflite,
}
