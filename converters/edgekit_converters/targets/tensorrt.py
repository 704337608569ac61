"""TensorRT through onnxruntime, on NVIDIA boards: symmetric QDQ ONNX and provider options.

The engine itself is made on the board, once for each GPU. Here the graph is checked against what
TensorRT takes, and its arithmetic is run by onnxruntime's CPU provider; latency and placement stay
unknown, and the evidence is `linted`, until a board runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit_converters import placement
from edgekit_converters.passes import Step, Style
from edgekit_converters.targets import Coverage, Job, Product
from edgekit_converters.targets.by_passes import ByPasses
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.lists import rules_of
from edgekit_converters.targets.onnxruntime_cpu import (
    CPU,
    cores_here,
    cpu_options,
    version_lint,
)

PROVIDER = "TensorrtExecutionProvider"
_FP16 = "trt_fp16_enable"

# onnx-tensorrt, docs/operators.md, release 10.3: the types that TensorRT's parser reads.
_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.BOOL,
    }
)
_QDQ = ("QuantizeLinear", "DequantizeLinear")


class TensorRt(ByPasses):
    """The target."""

    name = "tensorrt"
    style: Style = "tensorrt"

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == "onnxruntime" and PROVIDER in [p.name for p in engine.providers]

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:  # noqa: ARG002
        return coverage_of(model, rules_of("tensorrt"))

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:  # noqa: ARG002
        """The file as it is: the board makes its engine of it, at the first load."""
        graph = onnx.load_model(model, load_external_data=False)
        found = coverage_of(graph, rules_of("tensorrt"))
        return Product(path=model, placement=placement.linted(found))

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return "fp16" if any(p.options.get(_FP16) for p in engine.providers) else "fp32"

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        """The profile's providers, with the CPU last for what the others leave."""
        providers: list[dict[str, Any]] = [
            {"name": p.name, "options": dict(p.options)} if p.options else {"name": p.name}
            for p in engine.providers
        ]
        if CPU not in [provider["name"] for provider in providers]:
            providers.append({"name": CPU})
        return {"providers": providers, "threads": engine.threads, "spinning": False}

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:
        if self.evidence(profile, engine) == "executed":
            return self.options(engine)
        return cpu_options(threads=cores_here())

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "executed" if profile.is_this_machine() and _is_here() else "linted"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:
        """Rules of TensorRT's parser that can be read off the graph."""
        model = onnx.load_model(artifact, load_external_data=False)
        return (*version_lint(model, engine), *graph_lint(model))


def graph_lint(model: onnx.ModelProto) -> tuple[str, ...]:
    """What TensorRT refuses in a graph: foreign domains, types, asymmetric or int32 QDQ."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    problems = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            problems.append(f"{node.name}: operator {node.domain}.{node.op_type} is not standard")
        if node.op_type in _QDQ and len(node.input) > 2 and node.input[2]:
            problems += _zero_point_lint(node, constants.get(node.input[2]))
    for tensor in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        element = tensor.type.tensor_type.elem_type
        if element and element not in _TYPES:
            kind = TensorProto.DataType.Name(element).lower()
            problems.append(f"tensor {tensor.name} is {kind}, which TensorRT does not read")
    return tuple(problems)


def _zero_point_lint(node: onnx.NodeProto, zero_point: TensorProto | None) -> list[str]:
    if zero_point is None:
        return [f"{node.name}: its zero point is not a constant"]
    if zero_point.data_type != TensorProto.INT8:
        kind = TensorProto.DataType.Name(zero_point.data_type).lower()
        return [f"{node.name}: quantised to {kind}, TensorRT takes int8"]
    if np.any(numpy_helper.to_array(zero_point)):
        return [f"{node.name}: zero point is not 0, TensorRT takes symmetric int8"]
    return []


def _is_here() -> bool:
    import onnxruntime

    return PROVIDER in onnxruntime.get_available_providers()


TARGET = TensorRt()
