"""Small nets in which channels hang together in all the ways that pruning knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tests.converters.passes_models import graph_of, noise

SIZE = 6


class Net:
    """A net under construction on pictures x [N, 3, 6, 6]; every method returns a tensor."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        name = f"constant{len(self._constants)}"
        self._constants[name] = values
        return name

    def weight(self, *sizes: int) -> str:
        return self.constant(noise(len(self._constants), *sizes) * np.float32(0.3))

    def conv(self, x: str, before: int, after: int, *, kernel: int = 1, bias: bool = True) -> str:
        inputs = [x, self.weight(after, before, kernel, kernel)]
        if bias:
            inputs.append(self.weight(after))
        return self.add("Conv", *inputs, pads=[kernel // 2] * 4)

    def depthwise(self, x: str, channels: int, *, multiplier: int = 1) -> str:
        made = channels * multiplier
        inputs = [x, self.weight(made, 1, 3, 3), self.weight(made)]
        return self.add("Conv", *inputs, pads=[1, 1, 1, 1], group=channels)

    def gemm(self, x: str, before: int, after: int) -> str:
        return self.add("Gemm", x, self.weight(after, before), self.weight(after), transB=1)

    def head(self, x: str, channels: int) -> str:
        pooled = self.add("GlobalAveragePool", x)
        return self.gemm(self.add("Flatten", pooled), channels, 4)

    def model(self, output: str, *, batch: int | str = "N") -> onnx.ModelProto:
        """The net with its last tensor, [N, 4], as output `y`."""
        self._nodes.append(helper.make_node("Identity", [output], ["y"], "y"))
        return graph_of(
            self._nodes,
            inputs={"x": [batch, 3, SIZE, SIZE]},
            outputs={"y": [batch, 4]},
            constants=self._constants,
        )


def pictures(count: int = 12, *, seed: int = 0) -> NDArray[np.float32]:
    """Samples of normal noise [count, 3, 6, 6]."""
    return noise(seed, count, 3, SIZE, SIZE)


def chain() -> onnx.ModelProto:
    net = Net()
    x = net.add("Relu", net.conv("x", 3, 16, kernel=3))
    x = net.add("LeakyRelu", net.conv(x, 16, 12, kernel=3, bias=False))
    return net.model(net.head(x, 12))


def depthwise() -> onnx.ModelProto:
    net = Net()
    x = net.add("HardSwish", net.conv("x", 3, 16))
    low, high = (net.constant(np.array(value, np.float32)) for value in (0, 6))
    x = net.add("Clip", net.depthwise(x, 16, multiplier=2), low, high)
    return net.model(net.head(net.conv(x, 32, 8), 8))


def residual() -> onnx.ModelProto:
    net = Net()
    stream = net.conv("x", 3, 8)
    for _ in range(2):
        inner = net.add("Relu", net.conv(stream, 8, 16))
        stream = net.add("Add", stream, net.conv(inner, 16, 8))
    return net.model(net.head(stream, 8))


def squeeze() -> onnx.ModelProto:
    """A gate by channel [n, c, 1, 1], computed from the channels that it opens."""
    net = Net()
    x = net.add("Relu", net.conv("x", 3, 16))
    gate = net.conv(net.add("ReduceMean", x, axes=[2, 3], keepdims=1), 16, 8)
    gate = net.conv(net.add("Relu", gate), 8, 16)
    x = net.add("Mul", x, net.add("Sigmoid", gate))
    return net.model(net.head(net.conv(x, 16, 8), 8))


def concatenated() -> onnx.ModelProto:
    net = Net()
    parts = [net.conv("x", 3, count) for count in (8, 12, 16)]
    x = net.add("Relu", net.add("Concat", *parts, axis=1))
    return net.model(net.head(net.conv(x, 36, 8, kernel=3), 8))


def flattened() -> onnx.ModelProto:
    """Maps are padded, pooled and flattened into a linear layer, by a shape in numbers."""
    net = Net()
    x = net.conv("x", 3, 16)
    x = net.add("Pad", x, net.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Reshape", x, net.constant(np.array([-1, 16 * 16], np.int64)))
    return net.model(net.gemm(net.add("Relu", net.gemm(x, 256, 24)), 24, 4))


def normalised() -> onnx.ModelProto:
    """Batch normalisation, a slope and an offset for each channel, and a product without bias."""
    net = Net()
    x = net.conv("x", 3, 16, bias=False)
    variance = net.constant(np.abs(noise(99, 16)) + 1)
    x = net.add("BatchNormalization", x, *(net.weight(16) for _ in range(3)), variance)
    x = net.add("PRelu", x, net.weight(16, 1, 1))
    x = net.add("Add", x, net.weight(1, 16, 1, 1))
    x = net.add("Squeeze", net.add("GlobalAveragePool", x), net.constant(np.array([2, 3])))
    return net.model(net.add("MatMul", x, net.weight(16, 4)))


NETS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (chain, depthwise, residual, squeeze, concatenated, flattened, normalised)
}


def with_operator(
    operator: str, *, inputs: Sequence[NDArray[Any]] = (), **attributes: Any
) -> onnx.ModelProto:
    """An operator between two convolutions of 16 channels, [n, 16, 6, 6] in and out."""
    net = Net()
    x = net.conv("x", 3, 16)
    x = net.add(operator, x, *(net.constant(values) for values in inputs), **attributes)
    return net.model(net.head(net.conv(x, 16, 8), 8))
