"""Layers: what the compiler of Rockchip's toolkit says of each layer of a `.rknn` that it made.

It prints a table with the operator that it made of one or several nodes, the processor that runs
it, shapes and cycles. Cycles are its estimate for the NPU and its memory; what runs on the CPU, and
some operators that only move data, count as 0 there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from edgekit.structs import Strict
from edgekit_converters.targets import Found

NPU = "NPU"
# How the program's edges appear in the table: they are copies, not operators.
_EDGES = frozenset({"InputOperator", "OutputOperator"})
_PRODUCTS = frozenset({"MatMul", "exMatMul", "Gemm"})
# They multiply as many values as their own rules say, which the table does not show.
_UNCOUNTED = ("LSTM", "GRU", "RNN", "exLSTM", "exGRU", "exSDPAttention")


class Layer(Strict, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        type: the toolkit's name of the operator, as `ConvRelu`.
        datatype: what it computes in, as `INT8`.
        target: `NPU`, `CPU` or `GPU`.
        inputs: shapes as `(1,3,224,224),(32,3,3,3)`; `...` where there are more of them.
        cycles: estimate for the NPU.
        name: `TYPE:NODE` by the graph that it made of the model.
    """

    type: str
    datatype: str
    target: str
    inputs: str
    output: str
    cycles: int
    name: str


def placement_of(layers: Sequence[Layer]) -> Found:
    """Where the layers run, by the compiler's own assignment; nothing was run on a chip."""
    work = [layer for layer in layers if layer.type not in _EDGES]
    away = [layer for layer in work if layer.target != NPU]
    return Found(
        accelerator_macs=_share(work, away),
        fallback_ops=tuple(sorted({layer.type for layer in away})),
        evidence="estimated",
    )


def cycles_of(layers: Sequence[Layer]) -> int:
    """Cycles that the compiler estimates for one inference, what runs on the CPU aside."""
    return sum(layer.cycles for layer in layers)


def in_float(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Layers that compute in half precision, by name."""
    return tuple(layer.name for layer in layers if layer.datatype == "FLOAT16")


def macs_of(layer: Layer) -> int | None:
    """Multiply-accumulates of a layer at batch 1; None where the table does not tell."""
    if layer.type.startswith(_UNCOUNTED):
        return None
    inputs, output = _shapes(layer.inputs), (_shapes(layer.output) or [()])[0]
    if layer.type.startswith("Conv"):
        if len(inputs) < 2 or len(inputs[1]) < 3 or len(output) < 2:
            return None
        given, weights = inputs[0], inputs[1]
        if layer.type.startswith("ConvTranspose"):
            return prod(given) * prod(weights[1:])
        # A depthwise weight stands there as [1, channels, height, width].
        depthwise = weights[0] == 1 and weights[1] == output[1] != 1
        return prod(output) * prod(weights[2:] if depthwise else weights[1:])
    if layer.type in _PRODUCTS:
        return prod(output) * inputs[0][-1] if inputs and inputs[0] else None
    return 0


def _share(work: Sequence[Layer], away: Sequence[Layer]) -> float | None:
    counts = [macs_of(layer) for layer in away]
    if not any(count != 0 for count in counts):
        return 1.0 if any(macs_of(layer) != 0 for layer in work) or not away else None
    everything = [macs_of(layer) for layer in work]
    if None in everything:
        return None
    left = sum(count for count in counts if count is not None)
    return 1 - left / sum(count for count in everything if count is not None)


def _shapes(text: str) -> list[tuple[int, ...]]:
    found = re.findall(r"\(([\d,]+)\)", text)
    return [tuple(int(size) for size in shape.split(",") if size) for shape in found]
