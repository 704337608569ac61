"""Biases: what rounding a weight shifts its operator's mean by, taken back in the finished file.

The rule is that of `passes.biases` (Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", 2019, section 4.2), here on what the quantiser really wrote: the
error of a weight is its int8 value times its scale, less the float value it came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.tflite import packed, unpacked

_LARGEST = np.iinfo(np.int32)


def corrected(quantised: bytes, source: bytes, means: Mapping[str, NDArray[np.float64]]) -> bytes:
    """A quantised file whose int32 biases take back the shift of each output channel's mean.

    Args:
        source: the float file that it was made from; operators go by the tensors they make.
        means: mean of each channel of the float file's tensors; operators that read another tensor
            are left alone.
    """
    model, float_model = unpacked(quantised), unpacked(source)
    before = {layer.result: layer for layer in _layers(float_model)}
    layers = list(_layers(model))
    readers: dict[int, int] = {}
    for layer in layers:
        readers[layer.bias_number] = readers.get(layer.bias_number, 0) + 1
    for layer in layers:
        old = before.get(layer.result)
        mean = means.get(old.source) if old is not None else None
        is_whole = layer.weights.dtype == np.int8 and layer.bias.dtype == np.int32
        if old is None or mean is None or not is_whole or readers[layer.bias_number] > 1:
            continue
        shift = shift_of(layer.real_weights() - old.weights, mean, kind=layer.kind)
        scale = np.asarray(layer.bias_tensor.quantization.scale, np.float64)
        terms = layer.bias.astype(np.float64) - shift / scale
        _store(model, layer.bias_tensor, np.clip(np.rint(terms), _LARGEST.min, _LARGEST.max))
    return packed(model)


def shift_of(
    error: NDArray[np.floating], mean: NDArray[np.float64], *, kind: str
) -> NDArray[np.float64]:
    """Mean of each output channel that an error of the weight adds.

    Args:
        error: in the weight's layout: [out, ..., in] of a convolution or product, and
            [1, height, width, out] of a depthwise convolution.
        mean: of each channel that is read.
        kind: the operator's type in the schema's words.
    """
    if kind == "DEPTHWISE_CONV_2D":
        summed = error.reshape(-1, error.shape[-1]).sum(axis=0, dtype=np.float64)
        shift: NDArray[np.float64] = summed * np.repeat(mean, len(summed) // len(mean))
        return shift
    # A convolution of groups sees the input channels of its group alone.
    summed = error.reshape(len(error), -1, error.shape[-1]).sum(axis=1, dtype=np.float64)
    groups = len(mean) // summed.shape[1]
    by_group = summed.reshape(groups, -1, summed.shape[1])
    return np.asarray((by_group @ mean.reshape(groups, -1, 1)).reshape(-1))


@dataclass(frozen=True)
class _Layer:
    """One operator with a constant weight and a constant bias.

    Attributes:
        source, result: names of the tensors that it reads and makes.
    """

    kind: str
    source: str
    result: str
    weights: NDArray[Any]
    weight_tensor: Any
    bias: NDArray[Any]
    bias_tensor: Any
    bias_number: int

    def real_weights(self) -> NDArray[np.float64]:
        """What the int8 weights stand for; their zero points are 0."""
        scales = np.asarray(self.weight_tensor.quantization.scale, np.float64)
        shape = [1] * self.weights.ndim
        shape[self.weight_tensor.quantization.quantizedDimension if len(scales) > 1 else 0] = -1
        return self.weights * scales.reshape(shape)


def _layers(model: Any) -> Iterator[_Layer]:
    """The layers of a file's main graph."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    graph = model.subgraphs[0]
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = str(names.get(max(code.builtinCode, code.deprecatedBuiltinCode)))
        if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        if len(operator.inputs) < 3 or operator.inputs[2] < 0:
            continue
        source, weight, bias = (graph.tensors[number] for number in operator.inputs[:3])
        weights, terms = _values(model, weight), _values(model, bias)
        if weights is None or terms is None:
            continue
        yield _Layer(
            kind=kind,
            source=source.name.decode(),
            result=graph.tensors[operator.outputs[0]].name.decode(),
            weights=weights,
            weight_tensor=weight,
            bias=terms,
            bias_tensor=bias,
            bias_number=int(operator.inputs[2]),
        )


def _values(model: Any, tensor: Any) -> NDArray[Any] | None:
    """A constant of float32, int8 or int32; None of anything else."""
    from ai_edge_litert import schema_py_generated as schema

    types = {
        schema.TensorType.FLOAT32: np.float32,
        schema.TensorType.INT8: np.int8,
        schema.TensorType.INT32: np.int32,
    }
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type not in types:
        return None
    return np.asarray(data, np.uint8).view(types[tensor.type]).reshape(tensor.shape)


def _store(model: Any, tensor: Any, values: NDArray[np.float64]) -> None:
    """Give a tensor int32 values, in a buffer of its own where others read the old one."""
    from ai_edge_litert import schema_py_generated as schema

    users = sum(other.buffer == tensor.buffer for g in model.subgraphs for other in g.tensors)
    if users > 1:
        tensor.buffer = len(model.buffers)
        model.buffers.append(schema.BufferT())
    data = np.frombuffer(values.astype("<i4").tobytes(), np.uint8)
    model.buffers[tensor.buffer].data = data
