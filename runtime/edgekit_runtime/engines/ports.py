"""Ports: how a file's tensors show the interface of the model that the file was made from.

Converters rename inputs and outputs, put channels last and make integers of floats. A port brings
an array from the model's layout and datatype into the tensor's, and back; scale and zero point are
the tensor's own, so a port cannot contradict its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError
from edgekit.manifest import TensorSpec
from edgekit.structs import Strict

_INTEGERS = ("INT8", "UINT8", "INT16")


class PortSpec(Strict, frozen=True, kw_only=True):
    """What a variant's options say of an input or output.

    Attributes:
        name: as the model calls it.
        tensor: as the file calls it.
        axes: the tensor's axes are these axes of the model's, in this order; None for the same.
    """

    name: str
    tensor: str
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Tensor:
    """One input or output of a file.

    Attributes:
        scale: of one step, where it holds quantised values; 0 where it does not.
    """

    spec: TensorSpec
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True)
class Port:
    """One input or output, as the model has it and as the file has it."""

    spec: TensorSpec
    tensor: Tensor
    axes: tuple[int, ...] | None = None

    @property
    def is_quantised(self) -> bool:
        return self.spec.datatype != self.tensor.spec.datatype

    def to_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array that fits `spec`, as the tensor takes it."""
        if self.is_quantised:
            array = quantised(
                array,
                scale=self.tensor.scale,
                zero_point=self.tensor.zero_point,
                dtype=np.dtype(self.tensor.spec.datatype.lower()),
            )
        return array if self.axes is None else array.transpose(self.axes)

    def to_model(self, array: NDArray[Any]) -> NDArray[Any]:
        """What the tensor holds, as the model has it."""
        if self.is_quantised:
            array = np.subtract(array, self.tensor.zero_point, dtype=np.float32)
            array *= np.float32(self.tensor.scale)
        if self.axes is None:
            return array
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


def quantised(
    values: NDArray[Any], *, scale: float, zero_point: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Real values as integers: the nearest step; what lies beyond the range is its end."""
    steps = np.divide(values, np.float32(scale), dtype=np.float32)
    np.rint(steps, out=steps)
    steps += zero_point
    np.clip(steps, np.iinfo(dtype).min, np.iinfo(dtype).max, out=steps)
    # What is no number becomes some integer, as in the engine's own kernels.
    with np.errstate(invalid="ignore"):
        whole: NDArray[Any] = steps.astype(dtype)
    return whole


def plain(tensors: Sequence[Tensor]) -> tuple[Port, ...]:
    """The file's own interface."""
    return tuple(Port(tensor.spec, tensor) for tensor in tensors)


def placed(
    specs: Sequence[PortSpec], tensors: Mapping[str, Tensor], *, what: str, where: str
) -> tuple[Port, ...]:
    """The model's interface, as `specs` find it in a file's tensors.

    Args:
        tensors: all that the file has of these, by name.
        what: `input` or `output`.
        where: the file, for messages.

    Raises:
        EngineError: the specs do not name each tensor once, or do not fit one.
    """
    asked = [spec.tensor for spec in specs]
    if sorted(asked) != sorted(tensors):
        raise EngineError(
            f"{where}: the options place {what}s {_names(asked)}, the file has {_names(tensors)}",
            hint="build the bundle again: its options belong to another file",
        )
    if len({spec.name for spec in specs}) != len(specs):
        raise EngineError(f"{where}: the options name an {what} twice: {_names(asked)}")
    return tuple(_port(spec, tensors[spec.tensor], where=where) for spec in specs)


def _port(spec: PortSpec, tensor: Tensor, *, where: str) -> Port:
    shape, datatype = tensor.spec.shape, tensor.spec.datatype
    if spec.axes is not None:
        if sorted(spec.axes) != list(range(len(shape))):
            raise EngineError(
                f"{where}: axes {list(spec.axes)} of {spec.name!r} do not fit {list(shape)}"
            )
        shape = tuple(shape[int(axis)] for axis in np.argsort(spec.axes))
    if tensor.scale and datatype in _INTEGERS:
        datatype = "FP32"
    shown = TensorSpec(name=spec.name, datatype=datatype, shape=shape)
    return Port(shown, tensor, spec.axes)


def _names(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
