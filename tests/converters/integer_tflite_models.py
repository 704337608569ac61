"""Small full-integer TFLite models, written operator by operator with the schema LiteRT ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

INT8, INT32, FLOAT32 = (
    schema.TensorType.INT8,
    schema.TensorType.INT32,
    schema.TensorType.FLOAT32,
)
_OPTIONS = {"DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "CONV_2D": "Conv2DOptions"}


class Graph:
    """A graph under construction; tensors go by their numbers."""

    def __init__(self) -> None:
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes = []
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model.subgraphs = [self._graph]

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        *,
        kind: int = INT8,
        data: NDArray[Any] | None = None,
        scales: Sequence[float] = (0.05,),
        signature: Sequence[int] | None = None,
    ) -> int:
        """Add a tensor; several scales are by its first axis, or its last if that fits better."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), kind
        tensor.shapeSignature = signature
        if kind != FLOAT32 and scales:
            found = schema.QuantizationParametersT()
            found.scale, found.zeroPoint = list(scales), [0] * len(scales)
            found.quantizedDimension = 0 if len(scales) in (1, shape[0]) else len(shape) - 1
            tensor.quantization = found
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
        else:
            tensor.buffer = 0
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def add(
        self, operator: str, reads: Sequence[int], makes: Sequence[int], options: Any = None
    ) -> None:
        """Append an operator of the schema's name, with its options."""
        code = schema.OperatorCodeT()
        builtin = getattr(schema.BuiltinOperator, operator)
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.version = 3 if operator in _OPTIONS else 1
        made = schema.OperatorT()
        made.opcodeIndex = len(self._model.operatorCodes)
        made.inputs, made.outputs = list(reads), list(makes)
        if options is not None:
            made.builtinOptions = options
            kind = type(options).__name__.removesuffix("T")
            made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        self._model.operatorCodes.append(code)
        self._graph.operators.append(made)

    def convolve(
        self,
        name: str,
        source: int,
        made: int,
        *,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        dilations: tuple[int, int] = (1, 1),
        seed: int = 5,
    ) -> None:
        """Append a convolution with weights by channel and a bias."""
        read, written = self._graph.tensors[source].shape, self._graph.tensors[made].shape
        channels = written[-1]
        shape = (1, kernel, kernel, channels) if depthwise else (channels, kernel, kernel, read[-1])
        rng = np.random.default_rng(seed)
        scales = [0.01] * channels
        weights = self.tensor(
            f"{name}.weights", shape, data=rng.integers(-9, 9, shape, np.int8), scales=scales
        )
        bias = self.tensor(
            f"{name}.bias",
            [channels],
            kind=INT32,
            data=rng.integers(-9, 9, channels, np.int32),
            scales=[0.05 * scale for scale in scales],
        )
        options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        options.strideH = options.strideW = stride
        options.dilationHFactor, options.dilationWFactor = dilations
        if depthwise:
            options.depthMultiplier = 1
        operator = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        self.add(operator, [source, weights, bias], [made], options)

    def write(self, path: Path, *, inputs: Sequence[int], outputs: Sequence[int]) -> Path:
        """Write the file."""
        self._graph.inputs, self._graph.outputs = list(inputs), list(outputs)
        path.write_bytes(_packed(self._model))
        return path


def write_convnet(path: Path, *, middle: str = "RELU", stride: int = 1) -> Path:
    """`image` [1,8,8,4] to `scores` [1,n,n,2]: a convolution, an operator, depthwise, pointwise.

    Args:
        middle: an operator of one input.
        stride: of the depthwise convolution.
    """
    graph = Graph()
    side = -(-8 // stride)
    image = graph.tensor("image", [1, 8, 8, 4])
    first, then = graph.tensor("first", [1, 8, 8, 8]), graph.tensor("then", [1, 8, 8, 8])
    deep, scores = (
        graph.tensor("deep", [1, side, side, 8]),
        graph.tensor("scores", [1, side, side, 2]),
    )
    graph.convolve("c1", image, first, kernel=3)
    options = schema.L2NormOptionsT() if middle == "L2_NORMALIZATION" else None
    graph.add(middle, [first], [then], options)
    graph.convolve("c2", then, deep, kernel=3, stride=stride, depthwise=True)
    graph.convolve("c3", deep, scores, kernel=1)
    return graph.write(path, inputs=[image], outputs=[scores])


def with_values_behind(raw: bytes) -> bytes:
    """The same file with its values after the flatbuffer, as writers of large files have it."""
    model = schema.ModelT.InitFromPackedBuf(raw, 0)
    held = [buffer for buffer in model.buffers if buffer.data is not None]
    values = [bytes(buffer.data) for buffer in held]
    for buffer, data in zip(held, values, strict=True):
        buffer.data, buffer.offset, buffer.size = None, 1, len(data)
    place = len(_packed(model))
    for buffer, data in zip(held, values, strict=True):
        buffer.offset = place
        place += len(data)
    return _packed(model) + b"".join(values)


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
