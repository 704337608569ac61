"""Layers: a convolution or linear layer as one matrix, [outputs, features] times [features, rows].

Features of a convolution are its input channels times its taps, channel by channel; a row is one
position of its output. Rows are sub-sampled by a fixed rule, so that large maps cost no more than
small ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.passes.pruning.channels import Consumer

Matrix = NDArray[np.float64]

ROWS_PER_SAMPLE = 256
# Coprime to the sizes that maps have, so that samples are looked at in different places.
_STRIDE = 7


@dataclass(frozen=True)
class Layer:
    """A consumer with what is needed to see it as a matrix.

    Attributes:
        kernel: sizes of its window; empty for linear layers.
        strides, pads, dilations: of the window; pads before, then after, by axis.
        transposed: whether the weight is stored as [features, outputs].
        biased: whether it has a place for a bias: MatMul has none.
    """

    consumer: Consumer
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    transposed: bool
    biased: bool

    @property
    def taps(self) -> int:
        """Features of one input channel."""
        return prod(self.kernel)

    @property
    def features(self) -> int:
        return len(self.consumer.ids) * self.taps

    def matrix(self, weight: NDArray[Any]) -> Matrix:
        """A weight, as it is stored, as [outputs, features]."""
        stored = weight.T if self.transposed else weight.reshape(len(weight), -1)
        return stored.astype(np.float64)

    def features_of(self, channels: NDArray[np.intp]) -> NDArray[np.intp]:
        """Features of input channels, [..., k] to [..., k * taps]."""
        each = channels[..., np.newaxis] * self.taps + np.arange(self.taps)
        return each.reshape(*channels.shape[:-1], channels.shape[-1] * self.taps)

    def rows(self, source: NDArray[np.float32], *, sample: int) -> NDArray[np.float32]:
        """What the layer reads, [features, rows], at the positions of this sample's turn."""
        if not self.kernel:
            flat = source.reshape(-1, source.shape[-1]).T
            return flat[:, _positions(flat.shape[1], sample)]
        padded = np.moveaxis(source, 1, 0)
        if any(self.pads):
            half = len(self.kernel)
            margins = zip(self.pads[:half], self.pads[half:], strict=True)
            padded = np.pad(padded, [(0, 0), (0, 0), *margins])
        sizes = [
            (size - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, dilation, stride in zip(
                padded.shape[2:], self.kernel, self.dilations, self.strides, strict=True
            )
        ]
        total = (padded.shape[1], *sizes)
        entry, *corner = np.unravel_index(_positions(prod(total), sample), total)
        taps = []
        for tap in np.ndindex(*self.kernel):
            at = [
                first * stride + offset * dilation
                for first, stride, offset, dilation in zip(
                    corner, self.strides, tap, self.dilations, strict=True
                )
            ]
            taps.append(padded[(slice(None), entry, *at)])
        return np.stack(taps, axis=1).reshape(-1, len(entry))


def layer_of(model: onnx.ModelProto, consumer: Consumer) -> Layer:
    """A consumer of the model as a layer."""
    node = node_named(model, consumer.node)
    options = attributes_of(node)
    kernel: tuple[int, ...] = ()
    if node.op_type == "Conv":
        weight = next(t for t in model.graph.initializer if t.name == consumer.weight)
        kernel = tuple(weight.dims[2:])
    return Layer(
        consumer=consumer,
        kernel=kernel,
        strides=tuple(options.get("strides") or (1,) * len(kernel)),
        pads=tuple(options.get("pads") or (0,) * (2 * len(kernel))),
        dilations=tuple(options.get("dilations") or (1,) * len(kernel)),
        transposed=not kernel and not options.get("transB", 0),
        biased=node.op_type != "MatMul",
    )


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of a name; there is one."""
    nodes: Iterable[onnx.NodeProto] = model.graph.node
    return next(node for node in nodes if node.name == name)


def store(model: onnx.ModelProto, layer: Layer, matrix: Matrix, bias: Matrix | None) -> None:
    """Give a layer other weights, in place.

    Args:
        matrix: [outputs, features], in the sizes that the layer has in this model.
        bias: [outputs]; None leaves it as it is.
    """
    node = node_named(model, layer.consumer.node)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = tensors[layer.consumer.weight]
    shaped = matrix.T if layer.transposed else matrix.reshape(weight.dims)
    _write(weight, shaped)
    if bias is None:
        return
    if len(node.input) < 3 or not node.input[2]:
        del node.input[2:]
        node.input.append(f"{weight.name}.bias")
        model.graph.initializer.append(onnx.TensorProto(name=node.input[2]))
        tensors[node.input[2]] = model.graph.initializer[-1]
    _write(tensors[node.input[2]], bias)


def stored(model: onnx.ModelProto, layer: Layer) -> tuple[Matrix, Matrix]:
    """The weights [outputs, features] and bias [outputs] that a layer has in this model."""
    node = node_named(model, layer.consumer.node)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    matrix = layer.matrix(numpy_helper.to_array(tensors[layer.consumer.weight]))
    bias = np.zeros(len(matrix))
    if layer.biased and len(node.input) > 2 and node.input[2]:
        bias += numpy_helper.to_array(tensors[node.input[2]]).reshape(-1)
    return matrix, bias


def _write(tensor: onnx.TensorProto, values: Matrix) -> None:
    array = np.ascontiguousarray(values, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _positions(total: int, sample: int) -> NDArray[np.intp]:
    if total <= ROWS_PER_SAMPLE:
        return np.arange(total)
    spread = np.linspace(0, total - 1, ROWS_PER_SAMPLE).astype(np.intp)
    return (spread + sample * _STRIDE) % total
