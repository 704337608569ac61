"""Grids: scales and zero points of an earlier bundle, kept by a new build where they still fit.

A fine-tune moves most weights by a step or none; a scale that moves with the largest of them moves
all the others, and a delta between the two bundles is then as large as if all had been learned
anew. So a build that is given the earlier bundle keeps its grid wherever that costs next to
nothing, by the rules below, and chooses anew elsewhere. The artefact passes the same gate as any
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit.bundle import Bundle
from edgekit.errors import BuildError
from edgekit.structs import Strict
from edgekit_converters.passes.weights import along, as_int8
from edgekit_converters.ranges import Range, with_zero

Activations = Literal["u8", "s8", "u16"]

# The share of the range seen now that may lie outside of a kept one on either side, and how much
# wider a kept one may be.
_CLIPPED = 0.05
_WIDER = 1.25
# How much larger the squared error of a channel's weights may be on a kept scale.
_LOSS = 1.1
_KINDS: Mapping[np.dtype[np.generic], Activations] = {
    np.dtype(np.uint8): "u8",
    np.dtype(np.int8): "s8",
    np.dtype(np.uint16): "u16",
}
_ENDS: Mapping[Activations, tuple[int, int]] = {
    "u8": (0, 255),
    "s8": (-127, 127),
    "u16": (0, 65535),
}
_SCALE, _ZERO, _WEIGHT = "_scale", "_zero_point", "_quantized"


class Grids(Strict, frozen=True, kw_only=True):
    """What a quantised artefact rounds to.

    Attributes:
        digest: of the bundle it is from, `sha256:…`.
        activations: range of values that each activation's grid stands for, by tensor; `kind`
            says of how many steps.
        weights: scale of each weight, [channels] or [], by tensor.
    """

    digest: str
    kind: Activations
    activations: dict[str, Range]
    weights: dict[str, NDArray[np.float32]]


def read(path: Path, *, scratch: Path) -> Grids:
    """Grids of the first variant of a bundle that standard QDQ nodes quantise.

    Args:
        path: a `.edge` file or an unpacked folder.
        scratch: an empty folder, for what must be unpacked.

    Raises:
        BundleError: it is no bundle.
        BuildError: no variant of it is an ONNX file with such nodes.
    """
    with Bundle.open(path) as packed:
        folder = path if path.is_dir() else packed.unpack(scratch / "base")
    with Bundle.open(folder) as bundle:
        for variant in bundle.manifest.variants:
            artifact = bundle.artifact(variant)
            if artifact.suffix != ".onnx" or not variant.precision.startswith("int8-qdq"):
                continue
            found = grids_of(onnx.load(artifact), digest=bundle.digest)
            if found is not None:
                return found
    raise BuildError(
        f"{path} has no variant that static-int8 made, so there are no scales to keep",
        hint="leave --base out",
    )


def grids_of(model: onnx.ModelProto, *, digest: str) -> Grids | None:
    """Grids of a model that `static_int8` made; None where it has no quantised activation."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    activations: dict[str, Range] = {}
    weights: dict[str, NDArray[np.float32]] = {}
    kind: Activations | None = None
    for node in model.graph.node:
        if len(node.input) < 3 or not set(node.input[1:3]) <= constants.keys():
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        zero = numpy_helper.to_array(constants[node.input[2]])
        if scale.dtype != np.float32:
            continue
        if node.op_type == "QuantizeLinear" and scale.size == 1 and zero.dtype in _KINDS:
            kind = _KINDS[zero.dtype]
            tensor = node.input[1].removesuffix(_SCALE)
            activations[tensor] = range_of(float(scale.item()), int(zero.item()), kind)
        elif node.op_type == "DequantizeLinear" and node.input[0].endswith(_WEIGHT):
            stored = constants.get(node.input[0])
            if stored is not None and stored.data_type == onnx.TensorProto.INT8:
                weights[node.input[0].removesuffix(_WEIGHT)] = scale
    if kind is None:
        return None
    return Grids(digest=digest, kind=kind, activations=activations, weights=weights)


def range_of(scale: float, zero: int, kind: Activations) -> Range:
    """The range that onnxruntime's quantizer turns into exactly this scale and zero point."""
    first, last = _ENDS[kind]
    wanted = np.float32(scale)
    low = np.float32((first - zero) * scale)
    high = np.float32(float(low) + (last - first) * scale)
    for _ in range(4):
        # It divides in float64 what it was given in float32.
        found = np.float32((float(high) - float(low)) / (last - first))
        if found == wanted:
            break
        high = np.nextafter(high, np.float32(np.inf if found < wanted else -np.inf))
        if kind == "s8":
            low = np.float32(-high)
    return float(low), float(high)


def kept_ranges(
    model: onnx.ModelProto, ranges: Mapping[str, Range], grids: Grids, kind: Activations
) -> dict[str, Range]:
    """Ranges of activations, with those of the grids in their place that still fit.

    Args:
        model: in the form that is to be quantised.
        ranges: as calibrated.
        kind: how activations are to be stored; grids of another kind fit nowhere.
    """
    if kind != grids.kind:
        return dict(ranges)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    kept = dict(ranges)
    for tensor, grid in grids.activations.items():
        chain = [tensor]
        # What is only clipped is stored clipped: the quantizer takes the range from behind that.
        while len(after := readers.get(chain[-1], [])) == 1 and after[0].op_type in (
            "Clip",
            "Relu",
        ):
            chain.append(after[0].output[0])
        if chain[-1] in ranges and fits(grid, ranges[chain[-1]]):
            kept |= {name: grid for name in chain if name in ranges}
    return kept


def fits(grid: Range, seen: Range) -> bool:
    """Whether a grid still fits a range: little of that lies outside, and it is not much wider."""
    (low, high), (lowest, highest) = with_zero(grid), with_zero(seen)
    width = highest - lowest
    outside = max(low - lowest, highest - high)
    return outside <= _CLIPPED * width and high - low <= _WIDER * width


def kept_scale(
    values: NDArray[np.float32],
    own: NDArray[np.float32],
    earlier: NDArray[np.float32] | None,
    *,
    axis: int | None,
    floor: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Scales of a weight, [channels] or [], with the earlier ones where they round it as well.

    A channel keeps its scale where the squared error of its weights, clipping included, is at most
    a tenth more than on its own scale.

    Args:
        values: the weight.
        own: scales that were chosen for it.
        earlier: those of the earlier bundle; None where it has no such weight.
        floor: least scales.
    """
    if earlier is None or earlier.shape != own.shape:
        return own
    keeps = _loss(values, earlier, axis) <= _LOSS * _loss(values, own, axis)
    return np.where(keeps & (earlier >= floor), earlier, own).astype(np.float32)


def _loss(
    values: NDArray[np.float32], scale: NDArray[np.float32], axis: int | None
) -> NDArray[np.float64]:
    """Squared error of rounding, by channel."""
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    error = as_int8(values, scale, axis=axis) * along(scale, axis, values.ndim) - values
    total: NDArray[np.float64] = np.square(error, dtype=np.float64).sum(axis=others)
    return total
