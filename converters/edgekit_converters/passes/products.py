"""Products: MatMul and Gemm nodes with a constant weight, seen as one thing.

An activation [.., k] is multiplied by a weight [k, n]; how a node stores, scales and biases it is
hidden from the passes that quantise it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.passes.edits import Constants, constants_of, is_standard

Operator = Literal["MatMul", "Gemm"]


@dataclass(frozen=True)
class Product:
    """A matrix product with a constant float32 weight.

    Attributes:
        source: the activation, [.., k].
        weight: the constant, [k, n], or [n, k] where it is `transposed`.
        factor: what the product is multiplied with.
        bias: tensor that is added to the product; None without one.
    """

    node: onnx.NodeProto
    source: str
    weight: str
    transposed: bool
    factor: float
    bias: str | None

    @property
    def result(self) -> str:
        return str(self.node.output[0])

    @property
    def stem(self) -> str:
        """What names of new weights start with: equal for products that have equal values."""
        return f"{self.weight}.{self.transposed:d}.{self.factor:g}"

    @property
    def unbiased(self) -> str:
        """The tensor that holds the product before a bias is added: the result without one."""
        return self.result if self.bias is None else f"{self.result}.product"

    def values(self, constants: Constants) -> NDArray[np.float32]:
        """The weight as [k, n], multiplied with the factor."""
        values = numpy_helper.to_array(constants[self.weight])
        return np.asarray((values.T if self.transposed else values) * np.float32(self.factor))

    def add_bias(self) -> Iterator[onnx.NodeProto]:
        """The node that makes `result` of `unbiased`; none without a bias."""
        if self.bias is not None:
            yield helper.make_node(
                "Add", [self.unbiased, self.bias], [self.result], f"{self.node.name}.bias"
            )


def products_of(model: onnx.ModelProto, *, except_for: Iterable[str] = ()) -> list[Product]:
    """The products of the main graph, in order, without nodes of the names `except_for`."""
    constants = constants_of(model.graph)
    left_out = set(except_for)
    found = (
        _product(node, constants)
        for node in model.graph.node
        if is_standard(node, "MatMul", "Gemm") and node.name not in left_out
    )
    return [product for product in found if product is not None]


def is_float_constant(name: str, constants: Constants, *, rank: int) -> bool:
    """Whether a tensor is a float32 constant of this rank.

    One without values does not count: there is nothing to make smaller, and integer kernels give
    whatever lay in memory for a product of nothing.
    """
    tensor = constants.get(name)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return False
    return len(tensor.dims) == rank and all(tensor.dims)


def _product(node: onnx.NodeProto, constants: Constants) -> Product | None:
    if node.input[0] in constants or not is_float_constant(node.input[1], constants, rank=2):
        return None
    attributes = attributes_of(node)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    # A bias under a factor would need one more node; no exporter writes one.
    if attributes.get("transA") or (bias is not None and attributes.get("beta", 1.0) != 1.0):
        return None
    return Product(
        node=node,
        source=node.input[0],
        weight=node.input[1],
        transposed=bool(attributes.get("transB")),
        factor=float(attributes.get("alpha", 1.0)),
        bias=bias,
    )
