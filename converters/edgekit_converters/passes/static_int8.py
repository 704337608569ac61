"""Static int8: weights per channel and activations per tensor, as standard QDQ nodes.

Ranges come from our own calibration, the placement of QuantizeLinear and DequantizeLinear from
onnxruntime's QDQ quantizer. The same model, ranges and options give the same bytes. Graphs for
TensorRT follow its rules: symmetric int8 with zero point 0, biases left in float, and no pair
shared between nodes (NVIDIA, "Working with Quantized Types", explicit quantization).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import onnx
from onnx import shape_inference

from edgekit.errors import BuildError, RecipeError
from edgekit.profile import Scalar
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibrator, Method, Range
from edgekit_converters.normalise import MIN_OPSET, opset_of, sort_nodes
from edgekit_converters.passes import Scheme, Style
from edgekit_converters.passes.channels import pad_first_convolutions, widen_as_int8

Activations = Literal["u8", "s8"]
Kept = Literal["none", "ends", "unweighted"]

_PRECISIONS: Mapping[str, Activations] = {"int8-qdq-u8s8": "u8", "int8-qdq-s8s8": "s8"}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        activations: unsigned (u8) or symmetric (s8) activations; weights are always signed.
        calibrator: how ranges are chosen.
        percentile: for the calibrator of that name, in per cent.
        per_channel: a scale for each output channel of a weight, not one for the whole tensor.
        keep_float: nodes left in float: `ends` keeps the first and the last node with weights,
            `unweighted` everything that is not a convolution or matrix product.
        style: whose rules the graph follows.
    """

    activations: Activations = "u8"
    calibrator: Method = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    per_channel: bool = True
    keep_float: Kept = "none"
    style: Style = "onnxruntime"


class StaticInt8:
    """The pass."""

    def ladder(
        self, given: Mapping[str, Scalar], *, precisions: tuple[str, ...], style: Style
    ) -> tuple[Scheme, ...]:
        """MinMax first: it keeps outliers, which classifiers need most; then clipping ranges, then
        leaving nodes in float."""
        precision = next((p for p in precisions if p in _PRECISIONS), None)
        if precision is None:
            return ()
        base = {"activations": _PRECISIONS[precision], "style": style}
        steps: tuple[dict[str, Scalar], ...] = (
            {"calibrator": "minmax"},
            {"calibrator": "mse"},
            {"calibrator": "percentile"},
            {"calibrator": "minmax", "keep_float": "ends"},
            {"calibrator": "minmax", "keep_float": "unweighted"},
        )
        schemes = {}
        for step in steps:
            options = parse({**base, **step, **given})
            schemes[_name(options)] = Scheme(
                name=_name(options),
                precision=f"int8-qdq-{options.activations}s8",
                options=msgspec.to_builtins(options),
            )
        return tuple(schemes.values())

    def apply(
        self, model: onnx.ModelProto, scheme: Scheme, *, calibrator: Calibrator
    ) -> onnx.ModelProto:
        """Quantise; a `BuildError` says why it could not be done."""
        options = parse(scheme.options)
        if opset_of(model) < MIN_OPSET:
            raise BuildError(f"{scheme.name} needs opset {MIN_OPSET}, it is {opset_of(model)}")
        ranges = calibrator.ranges(options.calibrator, percentile=options.percentile)
        with _quiet():
            quantised = _quantise(model, ranges, options)
        if not any(node.op_type == "QuantizeLinear" for node in quantised.graph.node):
            raise BuildError(f"{scheme.name} found nothing to quantise in this model")
        return quantised


def parse(given: Mapping[str, Scalar]) -> Options:
    """Check options, raising `RecipeError` that names the wrong one."""
    try:
        return msgspec.convert(dict(given), Options)
    except msgspec.ValidationError as e:
        raise RecipeError(f"options of pass static-int8 are not valid: {e}") from e


def kept_in_float(model: onnx.ModelProto, keep: Kept) -> list[str]:
    """Names of the nodes that stay in float."""
    if keep == "none":
        return []
    weighted = [node.name for node in model.graph.node if node.op_type in _WEIGHTED]
    if keep == "ends":
        return sorted({*weighted[:1], *weighted[-1:]})
    return [node.name for node in model.graph.node if node.op_type not in _WEIGHTED]


def _quantise(
    model: onnx.ModelProto, ranges: Mapping[str, Range], options: Options
) -> onnx.ModelProto:
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = kept_in_float(model, options.keep_float)
    widened: dict[str, str] = {}
    # The kernels that want it are those for unsigned activations; others were not measured.
    if options.activations == "u8" and options.style == "onnxruntime":
        widened = pad_first_convolutions(copy)
        ranges = {**ranges, **{new: ranges[old] for new, old in widened.items() if old in ranges}}
        # The quantizer would put a pair on either side of the node that widens.
        kept += widened
    # The quantizer would else save and reload the model to infer what is inferred already.
    _mark_inferred(copy)
    symmetric = options.activations == "s8"
    try:
        quantizer: Any = QDQQuantizer(
            copy,
            per_channel=options.per_channel,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range={
                name: TensorData(lowest=np.float32(low), highest=np.float32(high))
                for name, (low, high) in ranges.items()
            },
            nodes_to_quantize=[],
            nodes_to_exclude=kept,
            op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
            extra_options=_extra_options(options),
        )
        quantised: onnx.ModelProto = quantizer.quantize_model()
    # The library raises whatever its own steps raise; for a build they all mean the same.
    except Exception as e:
        raise BuildError(
            f"onnxruntime cannot quantise this model: {e}",
            hint="the float model is still built; try keep_float: unweighted in the recipe",
        ) from e
    widen_as_int8(quantised, widened)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    quantised.producer_name = model.producer_name
    quantised.producer_version = model.producer_version
    quantised.ir_version = model.ir_version
    # The quantizer appends its nodes; ONNX wants each behind what it reads.
    sort_nodes(quantised)
    return shape_inference.infer_shapes(quantised)


def _extra_options(options: Options) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "ActivationSymmetric": options.activations == "s8",
        "WeightSymmetric": True,
    }
    if options.style == "tensorrt":
        extra |= {
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
            "OpTypesToExcludeOutputQuantization": list(_WEIGHTED),
        }
    return extra


def _mark_inferred(model: onnx.ModelProto) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = "onnx.infer", "onnxruntime.quant"


def _name(options: Options) -> str:
    parts = ["static-int8", f"{options.activations}s8", options.calibrator]
    if not options.per_channel:
        parts.append("per-tensor")
    if options.keep_float != "none":
        parts.append(f"float-{options.keep_float}")
    return "/".join(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer advises on the root logger about steps that a build has done differently."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


PASS = StaticInt8()
