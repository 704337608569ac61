"""Fp16: weights in half precision, and with them what is computed of them, or the weights alone.

Which inputs and outputs of an operator may be half is read from its schema; a tensor `x` is always
float32 under its own name and half under `x.fp16`, so that inputs, outputs and subgraphs keep what
they had. What half precision cannot hold stays in float with the nodes that read it: constants
beyond 65504, epsilons that would become 0, and tensors that calibration saw near that limit. Where
a CPU computes in float anyway, the weights alone are halved, and cast once, at start-up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import BuildError
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.autodiff.graph import reads_of
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import opset_of, sort_nodes
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.edits import (
    Constants,
    bytes_of,
    checked,
    constants_of,
    copied,
    holds_graph,
    is_standard,
    kept_label,
    require_nodes,
    step_options,
    swept,
)

log = logging.getLogger(__name__)

NAME = "fp16"
PRECISION = "fp16"
LARGEST = float(np.finfo(np.float16).max)
_HALF = "tensor(float16)"
_LEAST_SAVED = 0.25
_LEAST_VALUES = 64
# Samples do not show the largest value there will ever be.
_HEADROOM = 2.0

# These would need an attribute rewritten, or hold numbers that count rather than measure.
_KEPT = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",
        "EyeLike",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Range",
    }
)


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        activations: `fp32` halves the weights alone, which are cast back before they are used.
        operators_kept: operator types that are left in float.
        keep_float: names of nodes that are left in float.
    """

    activations: Literal["fp16", "fp32"] = "fp16"
    operators_kept: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()


class Fp16:
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
        """Everything in half for an accelerator; for a CPU the weights alone, then everything."""
        checked(given, Options, of=NAME)
        if PRECISION not in engine.precisions or _saved_at_most(model) < _LEAST_SAVED:
            return ()
        order = ("fp32", "fp16") if engine.accelerator == "cpu" else ("fp16",)
        if style == "tensorrt":
            order = ("fp16",)
        steps = [self.step({"activations": activations, **given}) for activations in order]
        return tuple({step.label: step for step in steps}.values())

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(
            name=NAME, label=_label(parsed), options=step_options(parsed), precision=PRECISION
        )

    def apply(
        self, model: onnx.ModelProto, step: Step, *, calibration: Calibration | None
    ) -> onnx.ModelProto:
        options = checked(step.options, Options, of=NAME)
        require_nodes(model, options.keep_float, of=step.label)
        if options.activations == "fp32":
            halved = _halved_weights(model, options)
        else:
            too_large = _seen_too_large(model, calibration)
            halved = _Halving(model, options, too_large=too_large).run()
        saved = 1 - halved.ByteSize() / model.ByteSize()
        if saved < _LEAST_SAVED:
            raise BuildError(
                f"{step.label} makes the model {max(saved, 0):.0%} smaller, at least"
                f" {_LEAST_SAVED:.0%} are worth it: {_why_not_smaller(model)}",
                hint="take the pass out of the recipe",
            )
        return halved


def unfit(tensor: TensorProto) -> float | None:
    """A value of a float32 constant that half precision cannot hold; None where it holds them.

    That is one beyond its range, or the largest of a constant all of which would become 0. Small
    values beside larger ones may become 0: they are lost in what they are added to.
    """
    values = numpy_helper.to_array(tensor)
    finite = np.abs(values[np.isfinite(values)])
    if finite.size == 0 or not (largest := float(finite.max())):
        return None
    return largest if largest > LARGEST or np.float16(largest) == 0 else None


class _Halving:
    """One run over a model: which tensors become half, and the nodes that say so."""

    def __init__(
        self, model: onnx.ModelProto, options: Options, *, too_large: Mapping[str, float]
    ) -> None:
        self._model = model
        self._constants = constants_of(model.graph)
        self._types = _types(model, self._constants)
        self._opset = opset_of(model)
        self._options = options
        self._unfit = dict(too_large)
        for name, tensor in self._constants.items():
            if tensor.data_type == TensorProto.FLOAT and (value := unfit(tensor)) is not None:
                self._unfit[name] = value

    def run(self) -> onnx.ModelProto:
        halved = copied(self._model)
        made_half: set[str] = set()
        wanted_half: set[str] = set()
        wanted_float = {value.name for value in halved.graph.output}
        for node in halved.graph.node:
            inputs, outputs = self._positions(node)
            _rewrite_attributes(node, halves_output=bool(outputs))
            wanted_half |= {node.input[i] for i in inputs}
            made_half |= {node.output[i] for i in outputs}
            for i in inputs:
                node.input[i] = _half(node.input[i])
            for i in outputs:
                node.output[i] = _half(node.output[i])
            wanted_float |= set(reads_of(node))
        self._add_constants(halved, wanted_half & self._constants.keys())
        casts = [
            *(_cast(name, TensorProto.FLOAT) for name in sorted(made_half & wanted_float)),
            *(
                _cast(name, TensorProto.FLOAT16)
                for name in sorted(wanted_half - made_half - self._constants.keys())
            ),
        ]
        halved.graph.node.extend(casts)
        known = {value.name: value for value in halved.graph.value_info}
        for name in sorted((made_half | wanted_half) & known.keys()):
            info = halved.graph.value_info.add()
            info.CopyFrom(known[name])
            info.name = _half(name)
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
        sort_nodes(halved)
        return swept(halved)

    def _positions(self, node: onnx.NodeProto) -> tuple[list[int], list[int]]:
        """Positions of the inputs and outputs of a node that become half; none, or all that may."""
        schema = self._schema(node)
        names = [name for name in (*node.input, *node.output) if name]
        if schema is None or not all(name in self._types for name in names):
            return [], []
        for name in names:
            if name in self._unfit:
                value = self._unfit[name]
                log.info("fp16 leaves %s in float: %s holds %g", node.name, name, value)
                return [], []
        allowed = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if _HALF in constraint.allowed_type_strs
        }
        inputs, outputs = (
            [
                i
                for i, name in enumerate(given)
                if name
                and self._types[name] == TensorProto.FLOAT
                # The last parameter of a schema may stand for any number of them.
                and formal[min(i, len(formal) - 1)].type_str in allowed
            ]
            for given, formal in ((node.input, schema.inputs), (node.output, schema.outputs))
        )
        return inputs, outputs

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
        """The schema of a node that may compute in half; None for one that stays as it is."""
        if (
            not is_standard(node)
            or node.op_type in _KEPT
            or node.op_type in self._options.operators_kept
            or node.name in self._options.keep_float
            or holds_graph(node)
        ):
            return None
        return onnx.defs.get_schema(node.op_type, self._opset, "")

    def _add_constants(self, halved: onnx.ModelProto, names: set[str]) -> None:
        for name in sorted(names):
            halved.graph.initializer.append(_as_half(self._constants[name]))


def _halved_weights(model: onnx.ModelProto, options: Options) -> onnx.ModelProto:
    halved = copied(model)
    kept = {
        name
        for node in model.graph.node
        if node.name in options.keep_float
        or node.op_type in _KEPT
        or node.op_type in options.operators_kept
        for name in node.input
    }
    weights = [t for t in _float_weights(model) if t.name not in kept and unfit(t) is None]
    names = {tensor.name for tensor in weights}
    rest = [tensor for tensor in halved.graph.initializer if tensor.name not in names]
    del halved.graph.initializer[:]
    halved.graph.initializer.extend([*rest, *(_as_half(tensor) for tensor in weights)])
    nodes = [_cast(tensor.name, TensorProto.FLOAT) for tensor in weights]
    nodes += halved.graph.node
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    return halved


def _float_weights(model: onnx.ModelProto) -> list[TensorProto]:
    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= _LEAST_VALUES
    ]


def _saved_at_most(model: onnx.ModelProto) -> float:
    saved = sum(bytes_of(tensor) for tensor in _float_weights(model)) / 2
    return saved / int(model.ByteSize())


def _why_not_smaller(model: onnx.ModelProto) -> str:
    holders = [node for node in model.graph.node if holds_graph(node)]
    if holders:
        size = sum(node.ByteSize() for node in holders)
        node = max(holders, key=lambda holder: holder.ByteSize())
        return (
            f"{size:,} of its {model.ByteSize():,} bytes lie inside of {node.op_type}"
            f" {node.name!r} and the like, which passes do not enter"
        )
    weights = _float_weights(model)
    size = sum(bytes_of(tensor) for tensor in weights)
    too_large = [tensor for tensor in weights if unfit(tensor) is not None]
    if too_large:
        worst = max(too_large, key=bytes_of)
        return f"{worst.name!r} holds {unfit(worst):g}, which fp16 cannot, and stays in float"
    return f"{size:,} of its {model.ByteSize():,} bytes are float32 weights in the main graph"


def _seen_too_large(model: onnx.ModelProto, calibration: Calibration | None) -> dict[str, float]:
    """Tensors that calibration samples took near the limit of fp16, and how far."""
    if calibration is None:
        return {}
    ranges = calibration.of(model).ranges("minmax")
    extremes = {name: max(-low, high) for name, (low, high) in ranges.items()}
    return {name: value for name, value in extremes.items() if value * _HEADROOM > LARGEST}


def _types(model: onnx.ModelProto, constants: Constants) -> dict[str, int]:
    graph = model.graph
    types = {name: tensor.data_type for name, tensor in constants.items()}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type:
            types[value.name] = value.type.tensor_type.elem_type
    return types


def _rewrite_attributes(node: onnx.NodeProto, *, halves_output: bool) -> None:
    """Where an attribute says the type of the output, it says half from now on."""
    if not halves_output:
        return
    for attribute in node.attribute:
        if is_standard(node, "Cast") and attribute.name == "to":
            attribute.i = TensorProto.FLOAT16
        elif is_standard(node, "ConstantOfShape", "Constant") and attribute.name == "value":
            attribute.t.CopyFrom(_as_half(attribute.t))


def _as_half(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float16)
    return numpy_helper.from_array(values, _half(tensor.name))


def _cast(name: str, to: int) -> onnx.NodeProto:
    source, target = (_half(name), name) if to == TensorProto.FLOAT else (name, _half(name))
    return helper.make_node("Cast", [source], [target], f"{target}.cast", to=to)


def _half(name: str) -> str:
    return f"{name}.fp16"


def _label(options: Options) -> str:
    parts = [NAME]
    if options.activations == "fp32":
        parts.append("weights")
    if options.operators_kept:
        parts.append("without-" + "-".join(options.operators_kept).lower())
    if options.keep_float:
        parts.append(kept_label(options.keep_float))
    return "/".join(parts)


PASS = Fp16()
