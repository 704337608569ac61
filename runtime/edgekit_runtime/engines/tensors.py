"""What fits a `TensorSpec`: datatypes of the protocol and of numpy, and which shapes match.

A tensor of datatype BYTES is an array of dtype object that holds `bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.manifest import Datatype, TensorSpec

Layout = Literal["nchw", "nhwc"]
_IMAGE_AXES = 4

DTYPES: Mapping[Datatype, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
DATATYPES: Mapping[np.dtype[Any], Datatype] = {dtype: name for name, dtype in DTYPES.items()}


def has_batch_axis(spec: TensorSpec) -> bool:
    """Whether axis 0 of this tensor counts samples: it is the caller's choice, or 1."""
    return bool(spec.shape) and spec.shape[0] in (-1, 1)


def fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    """Whether an array of this shape can be given for `spec`."""
    return len(shape) == len(spec.shape) and all(
        wanted in (-1, size) for size, wanted in zip(shape, spec.shape, strict=True)
    )


def zeros(specs: Sequence[TensorSpec], *, rows: int = 1) -> dict[str, NDArray[Any]]:
    """Inputs of zeros and empty texts.

    Args:
        rows: the size of axis 0 where it is the caller's; other sizes that are the caller's are 1.
    """
    return {
        spec.name: np.full(
            [rows if i == 0 and size == -1 else abs(size) for i, size in enumerate(spec.shape)],
            b"" if spec.datatype == "BYTES" else 0,
            DTYPES[spec.datatype],
        )
        for spec in specs
    }


def channels_last(array: NDArray[Any], *, layout: Layout) -> NDArray[Any]:
    """An array as vendors' files take it: images with channels last, all contiguous."""
    turned = layout == "nchw" and array.ndim == _IMAGE_AXES
    return np.asarray(np.moveaxis(array, 1, -1) if turned else array, order="C")


def misfit(specs: Sequence[TensorSpec], arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """Why `arrays` are not the inputs that `specs` ask for, naming the input; else `None`."""
    known = {spec.name for spec in specs}
    for name in arrays:
        if name not in known:
            return f"there is no input {name!r}; inputs are {', '.join(sorted(known))}"
    for spec in specs:
        if spec.name not in arrays:
            return f"input {spec.name!r} is missing"
        array = np.asarray(arrays[spec.name])
        if array.dtype != DTYPES[spec.datatype]:
            given = DATATYPES.get(array.dtype, str(array.dtype))
            return f"input {spec.name!r} must be {spec.datatype}, it is {given}"
        if not fits(array.shape, spec):
            return (
                f"input {spec.name!r} must have shape {list(spec.shape)},"
                f" it has {list(array.shape)}"
            )
    return None
