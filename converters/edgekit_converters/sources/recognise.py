"""Recognise: what kind of model a file holds, by its content and never by its name.

People hand over much that is no model, or one that has to be exported first. Each such file is
named for what it is, with the command that makes a model of it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from edgekit.errors import ModelError
from edgekit_converters.sources import archive

Kind = Literal["onnx", "tflite", "skops", "pickle", "pt2"]

HEAD_BYTES = 64
TFLITE_IDENTIFIER = b"TFL3"
_ZIP = b"PK\x03\x04"
# A torch file from before its zip format: a pickled magic number, then pickles.
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# How joblib may have packed a pickle: zlib, gzip, bzip2, xz, lzma.
_PACKED = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib"})
_EXPORT = "export it with torch.export.export(model, inputs), save that with torch.export.save"

# First bytes of files that people hand over in place of a model, and what they are.
_FOREIGN: Mapping[bytes, tuple[str, str]] = {
    _LEGACY_TORCH: ("a torch checkpoint: weights, or a module, without a graph", _EXPORT),
    b"\x89HDF": ("an HDF5 file (a Keras model, perhaps)", "export it to ONNX with tf2onnx"),
    b"version https://git-lfs": ("a Git LFS pointer, not the model", "run git lfs pull"),
    b"GGUF": ("a GGUF language model", "edgekit builds from ONNX; take the model's ONNX export"),
    b"\x93NUMPY": ("a numpy array", "name the model; samples are given with --data"),
    b"<": ("a text file (a web page, perhaps)", "download the model itself"),
    b"{": ("a JSON file", "name the model itself"),
}

# Entries that tell one zip archive from another, and what the archive is.
_FOREIGN_ZIPS: Mapping[str, tuple[str, str]] = {
    "serialized_exported_program.json": (
        "a torch program saved by torch before 2.8",
        "save it again with torch.export.save of a newer torch",
    ),
    "constants.pkl": ("a TorchScript program", _EXPORT),
    "data.pkl": ("a torch checkpoint: weights, or a module, without a graph", _EXPORT),
    "model.weights.h5": ("a Keras model", "export it with model.export(path, format='onnx')"),
    "signature.sigstore.json": ("an edgekit bundle", "build from the model it was made of"),
}


def recognise(path: Path, head: bytes) -> Kind:
    """The kind of a file.

    Args:
        head: its first `HEAD_BYTES` bytes.

    Raises:
        ModelError: it is something else, which the message names.
    """
    if head[4:8] == TFLITE_IDENTIFIER:
        return "tflite"
    if head.startswith(_ZIP):
        with archive.opened(path) as entries:
            return _kind_of_zip(path, entries)
    for magic, (what, hint) in _FOREIGN.items():
        if head.startswith(magic):
            raise ModelError(f"{path} is {what}, not a model", hint=hint)
    if head.startswith(_PICKLES):
        return "pickle"
    if head.startswith(_PACKED):
        if _PICKLE_SUFFIXES & set(path.suffixes):
            return "pickle"
        raise ModelError(f"{path} is a compressed file, not a model", hint="unpack it first")
    return "onnx"


def _kind_of_zip(path: Path, entries: zipfile.ZipFile) -> Kind:
    names = {PurePosixPath(name).name: name for name in entries.namelist()}
    if "schema.json" in entries.namelist():
        return "skops"
    if "archive_format" in names:
        with entries.open(names["archive_format"]) as file:
            if file.read(8) == b"pt2":
                return "pt2"
    for mark, (what, hint) in _FOREIGN_ZIPS.items():
        if mark in names:
            raise ModelError(f"{path} is {what}, not a model edgekit reads", hint=hint)
    if any(name.endswith(".npy") for name in names):
        raise ModelError(
            f"{path} is a numpy archive, not a model",
            hint="name the model; samples are given with --data",
        )
    raise ModelError(
        f"{path} is a zip archive (a torch or Keras file, perhaps), not a model",
        hint="export it to ONNX first, for torch with torch.onnx.export(..., dynamo=True)",
    )
