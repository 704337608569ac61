"""Dynamic int8: weights in int8; activations are quantised while the model runs, each by its range.

No samples are needed. A matrix product is written as DynamicQuantizeLinear, MatMulInteger and a
scale, which onnxruntime fuses into one kernel (`DynamicQuantizeMatMul`); an LSTM becomes its
`DynamicQuantizeLSTM`; a table of embeddings is stored in int8 with a scale for each row. Weights
are symmetric, with a scale for each output channel. The range of an activation is that of the whole
tensor: in a batch, an answer depends a little on its neighbours.

Convolutions are left alone. Their dynamic kernel took 2 to 6 times as long as float on each network
that was measured; and on a voice detector the spectrum in front of an LSTM, of a range that 8 bits
cannot hold, made answers of noise (relative error 6.8 in its state; the LSTM alone: 0.03).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import BuildError
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import attributes_of
from edgekit_converters.calibrate import Calibration
from edgekit_converters.inspect import macs_by_node
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.edits import (
    MICROSOFT,
    Constants,
    bytes_of,
    checked,
    constants_of,
    copied,
    is_standard,
    kept_label,
    nothing_to_do,
    require_nodes,
    step_options,
    swept,
    use_domain,
)
from edgekit_converters.passes.products import Product, is_float_constant, products_of

Operator = Literal["MatMul", "Gemm", "LSTM", "Gather"]

NAME = "dynamic-int8"
PRECISION = "int8-dynamic"
_PRODUCTS: tuple[Operator, ...] = ("MatMul", "Gemm")
_LEAST_SHARE_OF_MACS = 0.1
_LEAST_TABLE_BYTES = 1 << 20
_LEVELS = 127
_REDUCED_LEVELS = 63


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        operators: which are quantised, where their weights are constant.
        per_channel: a scale for each output channel of a weight, not one for the whole tensor.
        reduce_range: weights in 7 bits, for x86 CPUs without VNNI: sums of two products of 8 bits
            overflow the 16 bits that their instructions add in.
        keep_float: names of nodes that are left in float.
    """

    operators: Annotated[tuple[Operator, ...], msgspec.Meta(min_length=1)] = _PRODUCTS
    per_channel: bool = True
    reduce_range: bool = False
    keep_float: tuple[str, ...] = ()


class DynamicInt8:
    """The pass."""

    kind: Kind = "precision"
    needs_samples = False

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,
        style: Style,
    ) -> tuple[Step, ...]:
        """Matrix products, where they carry a tenth of the MACs; then also LSTMs, then tables."""
        fixed = checked(given, Options, of=NAME)
        if style != "onnxruntime" or PRECISION not in engine.precisions:
            return ()
        if "operators" in given:
            return (self.step(given),) if _quantisable(model, fixed) else ()
        by_operator: dict[str, list[onnx.NodeProto]] = {name: [] for name in get_args(Operator)}
        everything = msgspec.structs.replace(fixed, operators=get_args(Operator))
        for node in _quantisable(model, everything):
            by_operator[node.op_type].append(node)
        products = [node for name in _PRODUCTS for node in by_operator[name]]
        wanted: list[tuple[Operator, ...]] = []
        if products and _share_of_macs(model, products) >= _LEAST_SHARE_OF_MACS:
            wanted.append(_PRODUCTS)
        if by_operator["LSTM"]:
            wanted.append((*_PRODUCTS, "LSTM"))
        if wanted and _table_bytes(model, by_operator["Gather"]) >= _LEAST_TABLE_BYTES:
            wanted.append((*wanted[-1], "Gather"))
        return tuple(self.step({**given, "operators": operators}) for operators in wanted)

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(
            name=NAME,
            label=_label(parsed),
            options=step_options(parsed),
            precision=PRECISION,
        )

    def apply(
        self,
        model: onnx.ModelProto,
        step: Step,
        *,
        calibration: Calibration | None,  # noqa: ARG002
    ) -> onnx.ModelProto:
        options = checked(step.options, Options, of=NAME)
        require_nodes(model, options.keep_float, of=step.label)
        chosen = _quantisable(model, options)
        if not chosen:
            wanted = f"{' or '.join(options.operators)} with constant weights"
            raise nothing_to_do(model, label=step.label, wanted=wanted)
        return _quantise(model, chosen, options)


def _quantisable(model: onnx.ModelProto, options: Options) -> list[onnx.NodeProto]:
    constants = constants_of(model.graph)
    products = {product.node.name for product in products_of(model)}
    return [
        node
        for node in model.graph.node
        if is_standard(node, *options.operators)
        and node.name not in options.keep_float
        and (
            node.name in products
            or (node.op_type == "LSTM" and _is_lstm(node, constants))
            or (node.op_type == "Gather" and _is_embedding(node, constants))
        )
    ]


def _is_lstm(node: onnx.NodeProto, constants: Constants) -> bool:
    constant = all(is_float_constant(name, constants, rank=3) for name in node.input[1:3])
    # The operator knows no other layout than that of time first.
    return constant and not attributes_of(node).get("layout")


def _is_embedding(node: onnx.NodeProto, constants: Constants) -> bool:
    constant = is_float_constant(node.input[0], constants, rank=2)
    return constant and not attributes_of(node).get("axis")


def _table_bytes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> int:
    constants = constants_of(model.graph)
    return sum(bytes_of(constants[name]) for name in {node.input[0] for node in nodes})


def _share_of_macs(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> float:
    """The share of these nodes; 1 where shapes that are not known leave it open."""
    macs, unknown = macs_by_node(model)
    total = sum(macs.values())
    if unknown or not total:
        return 1.0
    return sum(macs.get(node.name, 0) for node in nodes) / total


def _quantise(
    model: onnx.ModelProto, chosen: list[onnx.NodeProto], options: Options
) -> onnx.ModelProto:
    quantised = copied(model)
    writer = _Writer(quantised, {node.name for node in chosen}, options)
    nodes = [written for node in model.graph.node for written in writer.rewrite(node)]
    del quantised.graph.node[:]
    quantised.graph.node.extend(nodes)
    return swept(quantised)


class _Writer:
    """Writes nodes in int8 into a graph; what several read is written once."""

    def __init__(self, model: onnx.ModelProto, chosen: set[str], options: Options) -> None:
        self._model = model
        self._chosen = chosen
        self._products = {product.node.name: product for product in products_of(model)}
        self._graph = model.graph
        self._constants = constants_of(model.graph)
        self._options = options
        self._activations: dict[str, tuple[str, str, str]] = {}
        self._written: set[str] = set()

    def rewrite(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes that stand in place of this one; it itself where it stays in float."""
        if node.name not in self._chosen:
            yield node
        elif node.op_type == "LSTM":
            use_domain(self._model, MICROSOFT)
            yield self._lstm(node)
        elif node.op_type == "Gather":
            yield from self._embedding(node)
        else:
            yield from self._product(self._products[node.name])

    def _product(self, product: Product) -> Iterator[onnx.NodeProto]:
        weight, scale = self._weight(product)
        if product.source not in self._activations:
            yield self._activation(product.source)
        values, step, zero = self._activations[product.source]
        name, result = product.node.name, product.result
        total, real, factor = f"{result}.int32", f"{result}.float", f"{result}.factor"
        make = helper.make_node
        yield make("MatMulInteger", [values, weight, zero], [total], f"{name}.int8")
        yield make("Cast", [total], [real], f"{name}.cast", to=TensorProto.FLOAT)
        yield make("Mul", [step, scale], [factor], f"{name}.factor")
        yield make("Mul", [real, factor], [product.unbiased], f"{name}.scale")
        yield from product.add_bias()

    def _activation(self, source: str) -> onnx.NodeProto:
        outputs = (f"{source}.uint8", f"{source}.scale", f"{source}.zero_point")
        self._activations[source] = outputs
        return helper.make_node("DynamicQuantizeLinear", [source], outputs, f"{source}.quantise")

    def _weight(self, product: Product) -> tuple[str, str]:
        """Names of an int8 weight [k, n] and of its scale, [n] or one."""
        axis = 0 if self._options.per_channel else None
        values = product.values(self._constants)
        narrow, scale = quantised_weight(
            values, axis=axis, levels=self._levels, name=product.weight
        )
        self._add(narrow, f"{product.stem}.int8")
        self._add(np.squeeze(scale), f"{product.stem}.scale")
        return f"{product.stem}.int8", f"{product.stem}.scale"

    def _embedding(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        table, rows, name, result = node.input[0], node.input[1], node.name, node.output[0]
        axis = 1 if self._options.per_channel else (0, 1)
        narrow, scale = quantised_weight(
            numpy_helper.to_array(self._constants[table]), axis=axis, levels=_LEVELS, name=table
        )
        self._add(narrow, f"{table}.rows")
        self._add(np.broadcast_to(scale, (len(narrow), 1)), f"{table}.rows.scale")
        picked, real, factor = f"{result}.int8", f"{result}.float", f"{result}.factor"
        make = helper.make_node
        yield make("Gather", [f"{table}.rows", rows], [picked], f"{name}.int8")
        yield make("Cast", [picked], [real], f"{name}.cast", to=TensorProto.FLOAT)
        yield make("Gather", [f"{table}.rows.scale", rows], [factor], f"{name}.factor")
        yield make("Mul", [real, factor], [result], f"{name}.scale")

    def _lstm(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The LSTM with its weights as [directions, inputs, 4 * hidden] in int8."""
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        for position in (1, 2):
            name = inputs[position]
            values = numpy_helper.to_array(self._constants[name]).transpose(0, 2, 1)
            axis = 1 if self._options.per_channel else (1, 2)
            narrow, scale = quantised_weight(values, axis=axis, levels=self._levels, name=name)
            scale = scale[:, 0] if self._options.per_channel else scale[:, 0, 0]
            for suffix, array in (
                ("int8", narrow),
                ("scale", scale),
                ("zero_point", np.zeros(scale.shape, np.int8)),
            ):
                self._add(array, f"{name}.lstm.{suffix}")
            inputs[position] = f"{name}.lstm.int8"
            inputs += [f"{name}.lstm.scale", f"{name}.lstm.zero_point"]
        kept = {k: v for k, v in attributes_of(node).items() if k != "layout"}
        return helper.make_node(
            "DynamicQuantizeLSTM",
            inputs,
            list(node.output),
            f"{node.name}.int8",
            domain=MICROSOFT,
            **kept,
        )

    @property
    def _levels(self) -> int:
        return _REDUCED_LEVELS if self._options.reduce_range else _LEVELS

    def _add(self, array: NDArray[Any], name: str) -> None:
        if name not in self._written:
            self._written.add(name)
            values = np.ascontiguousarray(array)
            self._graph.initializer.append(numpy_helper.from_array(values, name))


def quantised_weight(
    values: NDArray[np.float32], *, axis: int | tuple[int, ...] | None, levels: int, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 values, and the scale by which they are multiplied.

    Args:
        axis: axes that share a scale; None for all. The scale keeps them with size 1.
        levels: the largest value that is used.
        name: of the weight, for the error.

    Raises:
        BuildError: a value is not finite.
    """
    extremes = np.abs(values).max(axis=axis, keepdims=True, initial=0)
    if not np.isfinite(extremes).all():
        raise BuildError(
            f"weight {name!r} holds a value that is not finite, and cannot be quantised",
            hint="export the model again, from weights that are finite",
        )
    scale = np.where(extremes > 0, extremes / levels, 1).astype(np.float32)
    return np.rint(values / scale).clip(-levels, levels).astype(np.int8), scale


def _label(options: Options) -> str:
    parts = [NAME]
    if options.operators != _PRODUCTS:
        parts.append("-".join(options.operators).lower())
    if not options.per_channel:
        parts.append("per-tensor")
    if options.reduce_range:
        parts.append("7-bit")
    if options.keep_float:
        parts.append(kept_label(options.keep_float))
    return "/".join(parts)


PASS = DynamicInt8()
