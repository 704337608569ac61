"""Reads a state dict from a legacy torch checkpoint (`.pth`) without torch.

Promise: reading runs no code of the file. A pickle may name only `collections.OrderedDict`,
`torch._utils._rebuild_tensor_v2` and the storage types below; everything else is refused. What the
file makes us allocate is bounded by its own size: tensors are views of its bytes.

The layout is that of `torch.save` before 1.6: five pickles (magic number, protocol, system facts,
the state dict, the list of storage keys), then for each key an int64 count and the raw elements.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
from collections import OrderedDict
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ModelError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT = np.dtype("<i8")

_STORAGES = {
    "BoolStorage": np.dtype("?"),
    "ByteStorage": np.dtype("u1"),
    "CharStorage": np.dtype("i1"),
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "ShortStorage": np.dtype("<i2"),
}

_STORES = frozenset({"BINPUT", "LONG_BINPUT"})
_OPCODES = _STORES | {
    *("PROTO", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "STOP"),
    *("BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "MARK", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
}


# What the unpickler hands out is frozen: a pickle may try to set attributes of whatever it holds.
class _Elements(msgspec.Struct, frozen=True):
    """Stands for a storage type of torch."""

    dtype: np.dtype[Any]


class _Storage(msgspec.Struct, frozen=True):
    key: str
    dtype: np.dtype[Any]


class _Tensor(msgspec.Struct, frozen=True):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuild(msgspec.Struct, frozen=True):
    """Stands for `torch._utils._rebuild_tensor_v2`; gradients and hooks are ignored."""

    def __call__(
        self, storage: object, offset: object, shape: object, strides: object, *_: object
    ) -> _Tensor:
        if (
            isinstance(storage, _Storage)
            and _is_size(offset)
            and isinstance(shape, tuple)
            and isinstance(strides, tuple)
            and len(shape) == len(strides)
            and all(map(_is_size, shape + strides))
        ):
            return _Tensor(storage, offset, shape, strides)
        raise ModelError(f"tensor of shape {shape!r:.80} is not a view of a storage")


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value >= 0


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """Read the tensors of a legacy torch state dict.

    Returns:
        Name to read-only array in the order of the file, in the datatype of the file.

    Raises:
        ModelError: the file is missing, truncated, of another format, or its pickle asks for
            anything but tensors.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise ModelError(f"cannot read checkpoint {path}: {e.strerror}") from e
    try:
        return _parse(raw)
    except ModelError as e:
        raise ModelError(
            f"checkpoint {path}: {e}",
            hint="give the whole file that torch.save(model.state_dict(), path, "
            "_use_new_zipfile_serialization=False) wrote",
        ) from e


def _parse(raw: bytes) -> dict[str, NDArray[Any]]:
    stream = BytesIO(raw)
    if _load(stream) != _MAGIC or _load(stream) != _PROTOCOL:
        raise ModelError("not a legacy torch checkpoint")
    match _load(stream):
        case {"little_endian": True}:
            pass
        case _:
            raise ModelError("not written on a little-endian machine")
    state = _load(stream)
    keys = _load(stream)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in state.items()
    ):
        raise ModelError("holds something else than a flat state dict of tensors")
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in state.values()}
    storages = _read_storages(raw, stream.tell(), keys, dtypes)
    return {name: _view(name, tensor, storages) for name, tensor in state.items()}


def _load(stream: BytesIO) -> object:
    start = stream.tell()
    _check_opcodes(stream)
    stream.seek(start)
    try:
        return _Unpickler(stream).load()
    except (
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as e:
        raise ModelError(f"damaged pickle at byte {start}: {e}") from e


def _check_opcodes(stream: BytesIO) -> None:
    """Refuse operations that a state dict does not need, before any of them runs.

    The unpickler sizes its memo by the largest index it is given: an index beyond the number of
    operations would let a file of a few bytes allocate gigabytes.
    """
    start = stream.tell()
    try:
        with warnings.catch_warnings():
            # Python warns of a name with a backslash, which no class of a state dict has.
            warnings.simplefilter("error", DeprecationWarning)
            for done, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if opcode.name not in _OPCODES:
                    raise ModelError(f"its pickle uses {opcode.name}, which no state dict needs")
                if opcode.name in _STORES and int(argument or 0) > done:
                    raise ModelError(
                        f"its pickle stores to memo {argument} after {done} operations"
                    )
    except (ValueError, DeprecationWarning) as e:
        raise ModelError(f"not a legacy torch checkpoint, or cut short at byte {start}: {e}") from e


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and descriptions of tensors, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Rebuild()
            case "torch", _ if name in _STORAGES:
                return _Elements(_STORAGES[name])
        raise ModelError(f"its pickle asks for {module}.{name}, which is not allowed")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Elements(dtype=dtype), str(key), str(), int(), None):
                return _Storage(key, dtype)
        raise ModelError(f"unknown reference in its pickle: {pid!r:.80}")


def _read_storages(
    raw: bytes, offset: int, keys: object, dtypes: dict[str, np.dtype[Any]]
) -> dict[str, NDArray[Any]]:
    if not isinstance(keys, list) or set(keys) != dtypes.keys() or len(keys) != len(dtypes):
        raise ModelError("its list of storages does not fit its tensors")
    storages = {}
    for key in keys:
        start = offset + _COUNT.itemsize
        if start > len(raw):
            raise ModelError(f"cut short at byte {len(raw)}, before storage {key!r:.40}")
        count = int.from_bytes(raw[offset:start], "little", signed=True)
        offset = start + count * dtypes[key].itemsize
        if count < 0 or offset > len(raw):
            raise ModelError(f"cut short at byte {len(raw)}, inside storage {key!r:.40}")
        storages[key] = np.frombuffer(raw, dtypes[key], count, start)
    if offset != len(raw):
        raise ModelError(f"{len(raw) - offset} bytes follow the last storage")
    return storages


def _view(name: str, tensor: _Tensor, storages: dict[str, NDArray[Any]]) -> NDArray[Any]:
    storage = storages[tensor.storage.key]
    # Strides may visit an element twice, so that the shape could outgrow the file.
    if prod(tensor.shape) > storage.size:
        raise ModelError(f"tensor {name!r:.80} is larger than its storage")
    size_bytes = storage.itemsize
    try:
        return np.ndarray(
            tensor.shape,
            storage.dtype,
            storage.data,
            tensor.offset * size_bytes,
            tuple(stride * size_bytes for stride in tensor.strides),
        )
    except (OverflowError, TypeError, ValueError) as e:
        raise ModelError(f"tensor {name!r:.80} reaches beyond its storage: {e}") from e
