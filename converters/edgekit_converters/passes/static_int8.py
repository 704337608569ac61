"""Static int8: weights per channel and activations per tensor, as standard QDQ nodes.

Ranges come from our own calibration, int8 weights from `weights`, the placement of QuantizeLinear
and DequantizeLinear from onnxruntime's QDQ quantizer. The same model, ranges and options give the
same bytes. Graphs for TensorRT follow its rules: symmetric int8 with zero point 0, biases left in
float, and no pair shared between nodes (NVIDIA, "Working with Quantized Types", explicit
quantization).

Nothing is quantised whose range is not known. Recurrent nodes and what lies inside of If, Loop and
Scan stay in float: their errors would feed on themselves, and calibration does not see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import onnx

from edgekit.errors import BuildError
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration
from edgekit_converters.grids import Activations
from edgekit_converters.normalise import MIN_OPSET, opset_of
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.biases import corrected_inputs
from edgekit_converters.passes.edits import (
    checked,
    constants_of,
    is_standard,
    kept_label,
    nothing_to_do,
    require_nodes,
    step_options,
)
from edgekit_converters.passes.qdq import Plan, quantised
from edgekit_converters.passes.weights import (
    CONVOLUTIONS,
    RECURRENT,
    WEIGHTED,
    quantised_node,
    weight_of,
    weighted_inside,
)
from edgekit_converters.ranges import Method

Only = Literal["all", "weighted", "conv"]

NAME = "static-int8"
_PRECISIONS: Mapping[str, Activations] = {
    "int8-qdq-u8s8": "u8",
    "int8-qdq-s8s8": "s8",
    "int8-qdq-u16s8": "u16",
}
_METHODS: tuple[Method, ...] = ("minmax", "mse", "percentile", "entropy")
# They vanish into the node before them.
_FUSED = ("Clip", "Relu")


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        activations: unsigned (u8, u16) or symmetric (s8) activations, of 8 or 16 bits; weights are
            always signed, of 8 bits.
        calibrator: how ranges are chosen.
        percentile: for the calibrator of that name, in per cent.
        per_channel: a scale for each output channel of a weight, not one for the whole tensor.
        bias_correction: take what rounding the weights shifts the means by out of the biases.
        only: `all` that onnxruntime has int8 kernels for, `weighted` for convolutions and matrix
            products with constant weights, `conv` for convolutions alone.
        keep_float: names of nodes that are left in float.
        style: whose rules the graph follows.
    """

    activations: Activations = "u8"
    calibrator: Method = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    per_channel: bool = True
    bias_correction: bool = True
    only: Only = "all"
    keep_float: tuple[str, ...] = ()
    style: Style = "onnxruntime"


class StaticInt8:
    """The pass."""

    kind: Kind = "precision"
    needs_samples = True

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,
        style: Style,
    ) -> tuple[Step, ...]:
        """Everything, then fewer kinds of nodes, then one scale for a whole weight; each with
        MinMax first, which keeps the outliers that classifiers need most, then clipped ranges."""
        checked(given, Options, of=NAME)
        known = [_PRECISIONS[p] for p in engine.precisions if p in _PRECISIONS]
        wanted = given.get("activations", known[0] if known else None)
        if wanted not in known or _refusal(model) is not None:
            return ()
        base: dict[str, Option] = {"activations": str(wanted), "style": style}
        scopes: tuple[dict[str, Option], ...] = ({}, {"only": "weighted"}, {"only": "conv"})
        if style == "qnn":
            # An HTP that computes in integers alone takes no node in float.
            scopes = ({},)
        ways = [{**scope, "calibrator": method} for scope in scopes for method in _METHODS]
        ways.append({"per_channel": False})
        steps: dict[tuple[object, ...], Step] = {}
        for way in ways:
            step = self.step({**base, **way, **given})
            options = checked(step.options, Options, of=NAME)
            chosen = chosen_nodes(model, options)
            if any(is_standard(n, *WEIGHTED) for n in model.graph.node if n.name in chosen):
                steps.setdefault((options.calibrator, options.per_channel, chosen), step)
        return tuple(steps.values())

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(
            name=NAME,
            label=_label(parsed),
            options=step_options(parsed),
            precision=f"int8-qdq-{parsed.activations}s8",
        )

    def apply(
        self, model: onnx.ModelProto, step: Step, *, calibration: Calibration | None
    ) -> onnx.ModelProto:
        options = checked(step.options, Options, of=NAME)
        if calibration is None:
            raise BuildError(
                f"{step.label} needs calibration samples, and there are none",
                hint="give samples with --data, or take static-int8 out of the recipe",
            )
        refusal = _refusal(model)
        if refusal is not None:
            raise refusal
        require_nodes(model, options.keep_float, of=step.label)
        chosen = chosen_nodes(model, options)
        calibrator = calibration.of(model)
        axes = corrected_inputs(model, chosen) if options.bias_correction else {}
        plan = Plan(
            nodes=chosen,
            ranges=calibrator.ranges(options.calibrator, percentile=options.percentile),
            means=calibrator.means(axes),
            activations=options.activations,
            per_channel=options.per_channel,
            style=options.style,
            grids=calibration.grids,
        )
        made = quantised(model, plan)
        if made is None:
            raise nothing_to_do(
                model, label=step.label, wanted="convolution or matrix product of known range"
            )
        return made


def chosen_nodes(model: onnx.ModelProto, options: Options) -> frozenset[str]:
    """Names of the nodes that the options ask to be quantised.

    Weighted nodes are among them only where their weight is constant; `all` takes matrix products
    of two activations too.
    """
    operators = _operators(options.only)
    free = ("MatMul",) if options.only == "all" else ()
    constants = constants_of(model.graph)
    return frozenset(
        node.name
        for node in model.graph.node
        if is_standard(node, *operators)
        and node.name not in options.keep_float
        and (
            node.op_type not in WEIGHTED
            or node.op_type in free
            or weight_of(node, constants) is not None
        )
    )


def _operators(only: Only) -> tuple[str, ...]:
    if only == "conv":
        return (*CONVOLUTIONS, *_FUSED)
    if only == "weighted":
        return (*WEIGHTED, *_FUSED)
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))


def _refusal(model: onnx.ModelProto) -> BuildError | None:
    """Why this model cannot be quantised whatever the options; None where it can."""
    if opset_of(model) < MIN_OPSET:
        return BuildError(
            f"{NAME} needs opset {MIN_OPSET}, and the model has {opset_of(model)}: below it,"
            " files quantised per channel do not load",
            hint=f"export the model with opset {MIN_OPSET} or newer",
        )
    node = quantised_node(model)
    if node is not None:
        return BuildError(
            f"{NAME}: the model is quantised already, as {node.op_type} {node.name!r} shows",
            hint="give the float model, or take static-int8 out of the recipe",
        )
    constants = constants_of(model.graph)
    if all(weight_of(node, constants) is None for node in model.graph.node):
        return _nothing_weighted(model)
    return None


def _nothing_weighted(model: onnx.ModelProto) -> BuildError:
    for node in model.graph.node:
        if is_standard(node, *RECURRENT):
            return BuildError(
                f"{NAME}: the model's weights lie in {node.op_type} {node.name!r}, and recurrent"
                " nodes stay in float",
                hint="try dynamic-int8",
            )
        inner = weighted_inside(node)
        if inner is not None:
            return BuildError(
                f"{NAME}: the model's work, such as {inner.op_type} {inner.name!r}, lies inside of"
                f" {node.op_type} {node.name!r}, which passes do not enter",
                hint="export the model with the branch resolved, or build it in float",
            )
    return nothing_to_do(
        model, label=NAME, wanted="convolution or matrix product with constant weights"
    )


def _label(options: Options) -> str:
    calibrator: str = options.calibrator
    if calibrator == "percentile" and options.percentile != Options().percentile:
        calibrator = f"percentile-{options.percentile:g}"
    parts = [NAME, f"{options.activations}s8", calibrator]
    if not options.per_channel:
        parts.append("per-tensor")
    if not options.bias_correction:
        parts.append("uncorrected")
    if options.only != "all":
        parts.append(options.only)
    if options.style != "onnxruntime":
        parts.append(options.style)
    if options.keep_float:
        parts.append(kept_label(options.keep_float))
    return "/".join(parts)


PASS = StaticInt8()
