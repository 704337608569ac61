"""ONNX files: read whole, with the weights beside them, and refused where they are not as they say.

Limits hold before the memory that they bound is asked for: bytes are counted before they are
decoded, claims of tensors are compared with what they hold before arrays are made of them, files
beside the model are ordinary files inside its folder, and nothing in the graph grows without bound.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import SparseTensorProto, TensorProto, external_data_helper, helper

from edgekit.errors import ModelError
from edgekit_converters.sources import growth, wire

MAX_WEIGHT_BYTES = 4 << 30


def read(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """The model with all its weights in memory, and the files beside it that they came from.

    Raises:
        ModelError: the file is damaged, no ONNX model, claims what it does not hold, reaches out
            of its folder or grows beyond what a build can hold.
    """
    wire.require_bounded(path)
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
    beside = tuple(path.parent / location for location in _check_tensors(model, path))
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as e:
        raise ModelError(
            f"{path} is not a valid ONNX model: {_first_line(e)}", hint="export it again"
        ) from e
    growth.require_bounded(model, str(path))
    return model, beside


def _check_tensors(model: onnx.ModelProto, path: Path) -> list[str]:
    """Compare each tensor's claim with what it holds; return the external files, sorted."""
    locations: set[str] = set()
    total = 0
    for tensor in _tensors(model, path):
        # A sparse tensor takes its dense size in an engine.
        dense = tensor.values if isinstance(tensor, SparseTensorProto) else tensor
        claimed = _claimed_bytes(dense, tensor.dims, path)
        total += claimed
        if total > MAX_WEIGHT_BYTES:
            raise ModelError(f"{path}: its tensors claim more than {MAX_WEIGHT_BYTES} bytes")
        if isinstance(tensor, SparseTensorProto):
            continue
        if tensor.data_location == TensorProto.EXTERNAL:
            locations.add(_external(tensor, claimed, path))
        else:
            _require_held(tensor, claimed, path)
    return sorted(locations)


def _claimed_bytes(tensor: TensorProto, dims: Sequence[int], path: Path) -> int:
    if any(size < 0 for size in dims):
        raise ModelError(f"{path}: tensor {tensor.name!r} has a negative size")
    if tensor.data_type == TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError as e:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} has the unknown datatype {tensor.data_type}"
        ) from e
    return -(-int(prod(dims)) * _PACKED_BITS.get(tensor.data_type, dtype.itemsize * 8) // 8)


# Types below a byte are packed, and numpy has none: two, or four, share a byte.
_PACKED_BITS: Mapping[int, int] = {
    number: bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if (number := dict(TensorProto.DataType.items()).get(name)) is not None
}


def _require_held(tensor: TensorProto, claimed: int, path: Path) -> None:
    """Refuse a tensor that holds more or less than its size and datatype say."""
    if tensor.HasField("raw_data"):
        wanted, held, unit = claimed, len(tensor.raw_data), "bytes"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        pairs = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
        values = claimed if tensor.data_type in _PACKED_BITS else int(prod(tensor.dims)) * pairs
        wanted, held, unit = values, len(getattr(tensor, field)), "values"
    if held != wanted:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} claims {wanted} {unit} and holds {held}",
            hint="export or download the model again",
        )


def _external(tensor: TensorProto, claimed: int, path: Path) -> str:
    facts: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts or set("\\\0") & set(location):
        raise ModelError(
            f"{path}: tensor {tensor.name!r} lies in {location!r}, outside the model's folder",
            hint="keep external data beside the model",
        )
    file = path.parent / location
    try:
        inside = file.resolve(strict=True).is_relative_to(path.parent.resolve())
        status = file.stat()
        first = int(facts.get("offset", "0"))
        length = int(facts.get("length", claimed))
    except (OSError, RuntimeError) as e:  # resolve() raises RuntimeError for links in a circle
        reason = e.strerror if isinstance(e, OSError) else e
        raise ModelError(
            f"{path}: its weights {location!r} cannot be read: {reason}",
            hint="keep external data beside the model",
        ) from e
    except ValueError as e:
        raise ModelError(f"{path}: tensor {tensor.name!r} has a wrong offset or length") from e
    if not inside:
        raise ModelError(f"{path}: {location!r} is a link that leads out of the model's folder")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(
            f"{path}: its weights {location!r} are not an ordinary file",
            hint="keep external data in a file beside the model",
        )
    if length != claimed or first < 0 or first + length > status.st_size:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} claims {claimed} bytes at {first} of {location!r},"
            f" which has {status.st_size}",
            hint="the file is cut off, or belongs to another model",
        )
    return location


def _tensors(model: onnx.ModelProto, path: Path) -> Iterator[TensorProto | SparseTensorProto]:
    """Every tensor in the model: initialisers, attributes, those of subgraphs and functions.

    Names are looked at on the way: protobuf gives one that is no text as bytes.
    """
    pending: list[Message] = [model]
    while pending:
        message = pending.pop()
        if isinstance(message, TensorProto | SparseTensorProto):
            yield message
        for field, value in message.ListFields():
            parts = value if field.is_repeated else [value]
            if field.message_type is not None:
                pending.extend(parts)
            elif field.type == field.TYPE_STRING and any(isinstance(p, bytes) for p in parts):
                raise ModelError(
                    f"{path}: {message.DESCRIPTOR.name}.{field.name} holds {parts[0]!r:.80},"
                    " which is no text",
                    hint="export or download the model again",
                )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
