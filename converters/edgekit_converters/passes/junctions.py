"""Junctions: tensors whose channels can be scaled without a change of what the model computes.

Such a tensor is made by constants that have a place for each of its channels (a weight and bias, a
layer norm's factor and shift) and read by nothing but weights, which take the scale back. Between
the constants and the tensor may lie what commutes with a positive factor: ReLU, pooling, flattening
by channel. A clip at 6 does not: its bound would differ from channel to channel, and int8 kernels
take one.

Factors are powers of two, so a rewrite changes no answer by a single bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.passes.edits import constants_of, is_standard
from edgekit_converters.passes.weights import (
    CONVOLUTIONS,
    PRODUCTS,
    Weight,
    replace,
    uses_of,
    weight_of,
)

Values = Mapping[str, NDArray[np.float32]]

_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
_MOST_DOUBLINGS = 10
_UNBOUNDED = 3e38


class Source(Strict, frozen=True, kw_only=True):
    """A constant that a channel's factor multiplies.

    Attributes:
        axis: counts the channels; the others keep theirs.
    """

    tensor: str
    axis: int


class Junction(Strict, frozen=True, kw_only=True):
    """A tensor that may be scaled by channel.

    Attributes:
        tensor: its name; it is what the readers read.
        channels: how many there are.
        sources: constants to multiply by the factors.
        weighted: whether the first of the sources is the weight of a node.
        readers: weights to divide by the factors.
        per_channel: how many places of a reader belong to one channel (more than one behind a
            Flatten).
    """

    tensor: str
    channels: int
    sources: tuple[Source, ...]
    weighted: bool
    readers: tuple[Weight, ...]
    per_channel: int = 1


def junctions_of(model: onnx.ModelProto) -> tuple[Junction, ...]:
    """All junctions of the main graph, in running order.

    Args:
        model: in normal form.
    """
    finder = _Finder(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if is_standard(node, *CONVOLUTIONS, *PRODUCTS):
            readers.setdefault(node.input[0], []).append(node)
    found = (finder.junction(tensor, nodes) for tensor, nodes in readers.items())
    return tuple(junction for junction in found if junction is not None)


def values_of(
    model: onnx.ModelProto, junctions: Sequence[Junction]
) -> dict[str, NDArray[np.float32]]:
    """The constants that belong to junctions, by name."""
    names = {s.tensor for j in junctions for s in j.sources}
    names |= {w.tensor for j in junctions for w in j.readers}
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in names}


def powers_of_two(factors: NDArray[np.floating]) -> NDArray[np.float32]:
    """The nearest powers of two, from 1/1024 to 1024; 1 for what is no positive number."""
    usable = np.isfinite(factors) & (factors > 0)
    doublings = np.rint(np.log2(np.where(usable, factors, 1.0)))
    bounded = doublings.clip(-_MOST_DOUBLINGS, _MOST_DOUBLINGS)
    powers: NDArray[np.float32] = np.exp2(bounded).astype(np.float32)
    return powers


def written(values: Values, source: Source) -> NDArray[np.float32]:
    """Largest absolute value of a source by channel: [channels]."""
    array = values[source.tensor]
    others = tuple(i for i in range(array.ndim) if i != source.axis)
    largest: NDArray[np.float32] = np.abs(array).max(axis=others, initial=0)
    return largest


def read(values: Values, junction: Junction) -> NDArray[np.float32]:
    """Largest absolute value of what the readers multiply a channel by: [channels]."""
    largest = [
        np.abs(_by_input(values[weight.tensor], weight)).reshape(junction.channels, -1).max(axis=1)
        for weight in junction.readers
    ]
    return np.asarray(np.max(largest, axis=0), np.float32)


def scaled(
    values: Values, junction: Junction, factors: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The constants of a junction after its channels were multiplied by `factors`, [channels]."""
    changed = dict(values)
    for source in junction.sources:
        array = values[source.tensor]
        changed[source.tensor] = array * factors.reshape(
            [-1 if i == source.axis else 1 for i in range(array.ndim)]
        )
    for weight in junction.readers:
        array = values[weight.tensor]
        view = _by_input(array, weight)
        divisors = np.repeat(factors, junction.per_channel).reshape(*view.shape[:2], 1)
        changed[weight.tensor] = _from_input(view / divisors, array, weight)
    return changed


def store(model: onnx.ModelProto, values: Values) -> None:
    """Put constants back into a model, in place."""
    replace(model.graph, values)


def _by_input(array: NDArray[np.float32], weight: Weight) -> NDArray[np.float32]:
    """A weight as [groups, input channels of a group, everything else]."""
    if weight.inputs == 0:
        return array.reshape(1, array.shape[0], -1)
    grouped = array.reshape(weight.groups, -1, *array.shape[1:])
    return np.moveaxis(grouped, 2, 1).reshape(weight.groups, array.shape[1], -1)


def _from_input(
    view: NDArray[np.float32], array: NDArray[np.float32], weight: Weight
) -> NDArray[np.float32]:
    """The inverse of `_by_input`, in the shape of `array`."""
    if weight.inputs == 0:
        return view.reshape(array.shape)
    outputs = array.shape[0] // weight.groups
    spread = view.reshape(weight.groups, array.shape[1], outputs, *array.shape[2:])
    return np.moveaxis(spread, 1, 2).reshape(array.shape)


class _Finder:
    """Walks a graph upwards from the readers of a tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = constants_of(model.graph)
        self._uses: Counter[str] = uses_of(model)
        self._makers = {name: node for node in model.graph.node for name in node.output}
        weights = (weight_of(node, self._constants) for node in model.graph.node)
        self._weights = {weight.tensor for weight in weights if weight is not None}
        self._own = {tensor.name for tensor in model.graph.initializer}

    def junction(self, tensor: str, nodes: Sequence[onnx.NodeProto]) -> Junction | None:
        """The junction at a tensor that these nodes read; None where it cannot be scaled."""
        weights = [self._reader(node) for node in nodes]
        readers = tuple(weight for weight in weights if weight is not None)
        by_image = {is_standard(node, *CONVOLUTIONS) for node in nodes}
        if len(readers) < self._uses[tensor] or len(by_image) > 1:
            return None
        image = by_image == {True}
        flattened = self._flattened(tensor) if not image else None
        sources = self._sources(flattened or tensor, image=image or flattened is not None)
        if not sources:
            return None
        first = sources[0]
        channels = self._constants[first.tensor].dims[first.axis]
        places = [self._places(weight) for weight in readers]
        if len(set(places)) > 1 or places[0] % channels or (places[0] > channels and not flattened):
            return None
        return Junction(
            tensor=tensor,
            channels=channels,
            sources=sources,
            weighted=first.tensor in self._weights,
            readers=readers,
            per_channel=places[0] // channels,
        )

    def _reader(self, node: onnx.NodeProto) -> Weight | None:
        weight = weight_of(node, self._constants)
        transposed = is_standard(node, "Gemm") and bool(attributes_of(node).get("transA"))
        if weight is None or weight.inputs is None or weight.position != 1 or transposed:
            return None
        return weight if self._is_own(weight.tensor) else None

    def _places(self, weight: Weight) -> int:
        size = int(self._constants[weight.tensor].dims[weight.inputs or 0])
        return size if weight.inputs == 0 else size * weight.groups

    def _flattened(self, tensor: str) -> str | None:
        """What a Flatten by channel made this tensor of."""
        node = self._makers.get(tensor)
        if node is None or not is_standard(node, "Flatten"):
            return None
        if attributes_of(node).get("axis", 1) != 1 or self._uses[node.input[0]] != 1:
            return None
        return str(node.input[0])

    def _sources(self, tensor: str, *, image: bool) -> tuple[Source, ...]:
        """Constants that scale a tensor's channels (axis 1 of an image, else the last); maybe none.

        The weight, or the factor, comes first; a bias or shift behind it.
        """
        node = self._makers.get(tensor)
        if node is None:
            return ()
        if self._commutes(node, image=image):
            return self._sources(node.input[0], image=image) if self._once(node.input[0]) else ()
        if is_standard(node, *(CONVOLUTIONS if image else PRODUCTS)):
            return self._of_weighted(node)
        if image:
            return ()
        if is_standard(node, "LayerNormalization"):
            return self._of_layer_norm(node)
        if is_standard(node, "Mul", "Add"):
            return self._of_vector(node)
        return ()

    def _commutes(self, node: onnx.NodeProto, *, image: bool) -> bool:
        if is_standard(node, "Relu", "LeakyRelu", "Identity"):
            return True
        if is_standard(node, "Clip"):
            low, high = (self._number(node, i) for i in (1, 2))
            return low == 0.0 and (high is None or high > _UNBOUNDED)
        return image and is_standard(node, *_POOLS)

    def _number(self, node: onnx.NodeProto, position: int) -> float | None:
        """A constant scalar input; None where it is left out, not a number where it is computed."""
        if len(node.input) <= position or not node.input[position]:
            return None
        tensor = self._constants.get(node.input[position])
        return float("nan") if tensor is None else float(numpy_helper.to_array(tensor).item())

    def _of_weighted(self, node: onnx.NodeProto) -> tuple[Source, ...]:
        weight = weight_of(node, self._constants)
        if weight is None or weight.channels is None or not weight.scaled_by_channel:
            return ()
        sources = [Source(tensor=weight.tensor, axis=weight.channels)]
        if len(node.input) > 2 and node.input[2]:
            bias = self._constants.get(node.input[2])
            channels = self._constants[weight.tensor].dims[weight.channels]
            if bias is None or not bias.dims or bias.dims[-1] != channels:
                return ()
            sources.append(Source(tensor=node.input[2], axis=len(bias.dims) - 1))
        return self._all_own(sources)

    def _of_layer_norm(self, node: onnx.NodeProto) -> tuple[Source, ...]:
        vectors = [self._constants.get(name) for name in node.input[1:] if name]
        if any(v is None or len(v.dims) != 1 for v in vectors) or any(node.output[1:]):
            return ()
        return self._all_own([Source(tensor=name, axis=0) for name in node.input[1:] if name])

    def _of_vector(self, node: onnx.NodeProto) -> tuple[Source, ...]:
        """Of a product or sum with a constant that has a place for each channel."""
        constant = next((i for i in (0, 1) if node.input[i] in self._constants), None)
        if constant is None:
            return ()
        dims = self._constants[node.input[constant]].dims
        if not dims or dims[-1] == 1:
            return ()
        vector = Source(tensor=node.input[constant], axis=len(dims) - 1)
        if node.op_type == "Mul":
            return self._all_own([vector])
        other = node.input[1 - constant]
        above = self._sources(other, image=False) if self._once(other) else ()
        return self._all_own([*above, vector]) if above else ()

    def _once(self, tensor: str) -> bool:
        return self._uses[tensor] == 1

    def _all_own(self, sources: Sequence[Source]) -> tuple[Source, ...]:
        return tuple(sources) if all(self._is_own(s.tensor) for s in sources) else ()

    def _is_own(self, tensor: str) -> bool:
        """Whether a constant is an initialiser of float that one node alone reads."""
        kind = self._constants[tensor].data_type
        return tensor in self._own and self._once(tensor) and kind == TensorProto.FLOAT
