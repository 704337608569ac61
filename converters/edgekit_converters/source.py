"""Source: the model file a build starts from, read once and never trusted.

What the file claims is compared with what it holds before anything of the claimed size is
allocated; weights beside the model are read only from the model's own folder. Where weights come
from a second file (a federated round's), they replace initialisers of the same name, shape and
datatype, and the identity of the source covers both files.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from edgekit import tensors
from edgekit.errors import DataError, MessageError, ModelError

MAX_SOURCE_BYTES = 4 << 30
TFLITE_IDENTIFIER = b"TFL3"
_CHUNK = 1 << 20

# First bytes of files that people hand over in place of a model, and what they are.
_FOREIGN: Mapping[bytes, tuple[str, str]] = {
    b"PK\x03\x04": (
        "a zip archive (a torch or Keras file, perhaps)",
        "export it to ONNX first, for torch with torch.onnx.export(..., dynamo=True)",
    ),
    b"\x80\x02": ("a pickle", "export the model to ONNX; edgekit loads no pickle"),
    b"\x80\x04": ("a pickle", "export the model to ONNX; edgekit loads no pickle"),
    b"\x89HDF": ("an HDF5 file (a Keras model, perhaps)", "export it to ONNX with tf2onnx"),
    b"version https://git-lfs": ("a Git LFS pointer, not the model", "run git lfs pull"),
    b"<": ("a text file (a web page, perhaps)", "download the model itself"),
}


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX model with all its weights in memory.

    Attributes:
        sha256: over the file; with external data or replaced weights, over the hex digests of
            each file in order (model, external files by name, weights), joined by newlines.
    """

    path: Path
    sha256: str
    model: onnx.ModelProto
    format: Literal["onnx"] = "onnx"


@dataclass(frozen=True)
class TfliteSource:
    """A TFLite model; it is packaged as it is."""

    path: Path
    sha256: str
    format: Literal["tflite"] = "tflite"

    def copied_to(self, folder: Path) -> Path:
        """The same file in `folder`, where a compiler may write beside it."""
        target = folder / "source.tflite"
        if not target.exists():
            shutil.copyfile(self.path, target)
        return target


Source = OnnxSource | TfliteSource


def read(path: Path, *, weights: Path | None = None) -> Source:
    """Read a model file.

    Args:
        path: `.onnx` or `.tflite`; the content decides, not the name.
        weights: a safetensors file whose arrays replace initialisers of an ONNX model.

    Raises:
        ModelError: the file is missing, too large, damaged, foreign, or claims what it does not
            hold.
        DataError: the weights do not fit the model.
    """
    head = _head(path)
    if head[4:8] == TFLITE_IDENTIFIER:
        if weights is not None:
            raise DataError(
                f"{path} is a TFLite model, whose weights cannot be replaced",
                hint="build from the ONNX model",
            )
        return TfliteSource(path, _file_sha256(path))
    for magic, (what, hint) in _FOREIGN.items():
        if head.startswith(magic):
            raise ModelError(f"{path} is {what}, not an ONNX or TFLite model", hint=hint)
    return _read_onnx(path, weights)


def replace_weights(model: onnx.ModelProto, arrays: Mapping[str, NDArray[Any]], what: str) -> None:
    """Put arrays in place of the initialisers of the same name.

    Raises `DataError` where a name, shape or datatype is not the model's.
    """
    initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, array in arrays.items():
        if name not in initialisers:
            raise DataError(
                f"{what} has an array {name!r}, which is no initialiser of the model",
                hint=f"the model's are: {', '.join(sorted(initialisers)[:8])}",
            )
        tensor = initialisers[name]
        wanted = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tuple(tensor.dims) != array.shape or wanted != array.dtype:
            raise DataError(
                f"{what}: {name!r} is {array.dtype} {list(array.shape)},"
                f" the model has {wanted} {list(tensor.dims)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{what}: {name!r} holds a value that is not finite")
        tensor.CopyFrom(numpy_helper.from_array(array, name))


def _head(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is not a file", hint="name a .onnx or .tflite file")
        if status.st_size > MAX_SOURCE_BYTES:
            raise ModelError(
                f"{path} has {status.st_size} bytes, a source at most {MAX_SOURCE_BYTES}"
            )
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as e:
        raise ModelError(f"model {path} cannot be read: {e.strerror}", hint="check the path") from e
    if not head:
        raise ModelError(f"{path} is empty", hint="export or download the model again")
    return head


def _read_onnx(path: Path, weights: Path | None) -> OnnxSource:
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, MemoryError) as e:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut off: {e}",
            hint="export or download the model again",
        ) from e
    if not model.graph.node or not model.opset_import:
        raise ModelError(
            f"{path} holds no ONNX graph, or is cut off", hint="export or download the model again"
        )
    beside = [path.parent / location for location in _check_tensors(model, path)]
    digests = [_file_sha256(file) for file in (path, *beside)]
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as e:
        raise ModelError(
            f"{path} is not a valid ONNX model: {_first_line(e)}", hint="export it again"
        ) from e
    if weights is not None:
        replace_weights(model, _read_weights(weights), str(weights))
        digests.append(_file_sha256(weights))
    joined = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return OnnxSource(path, digests[0] if len(digests) == 1 else joined, model)


def _read_weights(path: Path) -> dict[str, NDArray[Any]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"weights {path} is not a file", hint="name a .safetensors file")
        if status.st_size > MAX_SOURCE_BYTES:
            raise DataError(f"{path} has more than {MAX_SOURCE_BYTES} bytes")
        return tensors.decode(path.read_bytes(), what=str(path))
    except OSError as e:
        raise DataError(f"weights {path} cannot be read: {e.strerror}") from e
    except MessageError as e:
        raise DataError(e.message) from e


def _check_tensors(model: onnx.ModelProto, path: Path) -> list[str]:
    """Compare each tensor's claim with what it holds; return the external files, sorted."""
    locations: set[str] = set()
    total = 0
    for tensor in _tensors(model):
        claimed = _claimed_bytes(tensor, path)
        total += claimed
        if total > MAX_SOURCE_BYTES:
            raise ModelError(f"{path}: its tensors claim more than {MAX_SOURCE_BYTES} bytes")
        if tensor.data_location == TensorProto.EXTERNAL:
            locations.add(_external(tensor, claimed, path))
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != claimed:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} claims {claimed} bytes"
                f" and holds {len(tensor.raw_data)}"
            )
    return sorted(locations)


def _claimed_bytes(tensor: TensorProto, path: Path) -> int:
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"{path}: tensor {tensor.name!r} has a negative size")
    if tensor.data_type == TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError as e:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has the unknown datatype {tensor.data_type}"
        ) from e
    # Types below a byte are packed, and numpy has none: two, or four, share a byte.
    bits = _PACKED_BITS.get(TensorProto.DataType.Name(tensor.data_type), dtype.itemsize * 8)
    return -(-int(prod(tensor.dims)) * bits // 8)


_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def _external(tensor: TensorProto, claimed: int, path: Path) -> str:
    facts: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts or "\\" in location:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} lies in {location!r}, outside the model's folder",
            hint="keep external data beside the model",
        )
    file = path.parent / location
    try:
        inside = file.resolve(strict=True).is_relative_to(path.parent.resolve())
        size = file.stat().st_size
        first = int(facts.get("offset", "0"))
        length = int(facts.get("length", claimed))
    except OSError as e:
        raise ModelError(
            f"{path}: its weights {location!r} cannot be read: {e.strerror}",
            hint="keep external data beside the model",
        ) from e
    except ValueError as e:
        raise ModelError(f"{path}: tensor {tensor.name!r} has a wrong offset or length") from e
    if not inside:
        raise ModelError(f"{path}: {location!r} is a link that leads out of the model's folder")
    if length != claimed or first < 0 or first + length > size:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} claims {claimed} bytes at {first} of {location!r},"
            f" which has {size}",
            hint="the file is cut off, or belongs to another model",
        )
    return location


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor in the model: initialisers, attributes, those of subgraphs and functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if field.is_repeated else [value]:
            if isinstance(part, TensorProto):
                yield part
            elif isinstance(part, Message):
                yield from _tensors(part)


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
