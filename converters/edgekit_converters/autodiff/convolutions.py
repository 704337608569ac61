"""Gradients of convolution and max pooling; the spatial sizes must be numbers.

The gradient by the data is a transposed convolution. The gradient by the kernel is again a
convolution, of the data with the incoming gradient as kernel, where strides and dilations change
places (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016). A group of
channels stays a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit_converters.autodiff.rule import Call, Rule


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the spatial axes, one entry per axis."""

    data: list[int]
    out: list[int]
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @classmethod
    def of(cls, call: Call) -> Window:
        """Read the attributes of a `Conv` node, with its automatic padding worked out."""
        graph, given = call.graph, call.attributes
        axes = range(2, len(graph.dimensions(call.node.input[0])))
        data = graph.fixed(call.node.input[0], axes)
        kernel = graph.fixed(call.node.input[1], axes)
        out = graph.fixed(call.output, axes)
        strides = list(given.get("strides", [1] * len(axes)))
        dilations = list(given.get("dilations", [1] * len(axes)))
        mode = given.get("auto_pad", "NOTSET")
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            spans = zip(out, strides, kernel, dilations, data, strict=True)
            pads = [max((o - 1) * s + (k - 1) * d + 1 - n, 0) for o, s, k, d, n in spans]
            less, more = [p // 2 for p in pads], [p - p // 2 for p in pads]
            begin, end = (less, more) if mode == "SAME_UPPER" else (more, less)
        else:
            both = [0] * (2 * len(axes)) if mode == "VALID" else given.get("pads")
            both = list(both or [0] * (2 * len(axes)))
            begin, end = both[: len(axes)], both[len(axes) :]
        return cls(data, out, kernel, strides, dilations, begin, end)

    def unused(self) -> list[int]:
        """Return how many padded elements at the end of each axis no position of the kernel met."""
        met = [
            (o - 1) * s + (k - 1) * d + 1
            for o, s, k, d in zip(self.out, self.strides, self.kernel, self.dilations, strict=True)
        ]
        padded = [b + n + e for b, n, e in zip(self.begin, self.data, self.end, strict=True)]
        return [p - m for p, m in zip(padded, met, strict=True)]


def _conv(call: Call) -> dict[int, str]:
    graph, g, window = call.graph, call.gradient, Window.of(call)
    x, kernel = call.node.input[:2]
    group = call.attributes.get("group", 1)
    by_data = graph.add(
        "ConvTranspose",
        [g, kernel],
        group=group,
        strides=window.strides,
        dilations=window.dilations,
        pads=[*window.begin, *window.end],
        output_padding=window.unused(),
    )
    gradients = {0: by_data, 1: _conv_by_kernel(call, x, group, window)}
    if call.input(2) is not None:
        axes = [0, *range(2, 2 + len(window.data))]
        gradients[2] = graph.add("ReduceSum", [g, graph.integers(axes)], keepdims=0)
    return gradients


def _conv_by_kernel(call: Call, x: str, group: int, window: Window) -> str:
    graph, kernel = call.graph, call.node.input[1]
    (per_group,) = graph.fixed(kernel, [1])
    spatial = list(range(len(window.data)))
    # Samples become channels: [N, G*C, ...] -> [C, G*N, ...] and [N, G*O, ...] -> [G*O, N, ...].
    split = graph.add("Reshape", [x, graph.integers([-1, group, per_group, *window.data])])
    turned = graph.add("Transpose", [split], perm=[2, 1, 0, *(3 + axis for axis in spatial)])
    data = graph.add("Reshape", [turned, graph.integers([per_group, -1, *window.data])])
    weights = graph.add("Transpose", [call.gradient], perm=[1, 0, *(2 + axis for axis in spatial)])
    made = graph.add(
        "Conv",
        [data, weights],
        group=group,
        kernel_shape=window.out,
        strides=window.dilations,
        dilations=window.strides,
        pads=[*window.begin, *window.end],
    )
    if any(window.unused()):
        starts, ends = graph.integers([0] * len(spatial)), graph.integers(window.kernel)
        made = graph.add("Slice", [made, starts, ends, graph.integers(2 + a for a in spatial)])
    return graph.add("Transpose", [made], perm=[1, 0, *(2 + axis for axis in spatial)])


def _max_pool(call: Call) -> dict[int, str]:
    # The pool is run once more for the places of its maxima, so the forward graph stays as it is.
    graph, x = call.graph, call.node.input[0]
    _, places = graph.add_many("MaxPool", [x], 2, **call.attributes)
    flat = graph.integers([-1])
    zero = graph.scalar(0, like=x)
    empty = graph.add("Expand", [zero, graph.add("Reshape", [graph.add("Size", [x]), flat])])
    scattered = graph.add(
        "ScatterElements",
        [
            empty,
            graph.add("Reshape", [places, flat]),
            graph.add("Reshape", [call.gradient, flat]),
        ],
        axis=0,
        reduction="add",
    )
    return {0: graph.add("Reshape", [scattered, graph.shape_of(x)])}


CONVOLUTIONS: Mapping[str, Rule] = {"Conv": _conv, "MaxPool": _max_pool}
