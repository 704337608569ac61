"""onnxruntime on a CPU: ONNX as it is, in float and as QDQ int8.

The same engine runs on a workstation, so artefacts are always run here. On another instruction set
that shows the arithmetic of the graph and no kernel of the board: it counts as simulated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit_converters.normalise import opset_of
from edgekit_converters.passes import Style
from edgekit_converters.targets import Coverage
from edgekit_converters.targets.by_passes import ByPasses

CPU = "CPUExecutionProvider"
_MOST_THREADS = 64
_QUANTISED = frozenset(
    {"DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)


class OnnxRuntimeCpu(ByPasses):
    """The target."""

    name = "onnxruntime-cpu"
    style: Style = "onnxruntime"

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == "onnxruntime" and engine.accelerator == "cpu"

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:  # noqa: ARG002
        return Coverage(accelerator_macs=1.0)

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return precision_of(onnx.load_model(artifact, load_external_data=False))

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        return cpu_options(threads=engine.threads)

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:
        if self.evidence(profile, engine) == "executed":
            return self.options(engine)
        return cpu_options(threads=cores_here())

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "executed" if profile.is_this_machine() else "simulated"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:
        return version_lint(onnx.load_model(artifact, load_external_data=False), engine)


def cores_here() -> int:
    """Threads for arithmetic that is not timed."""
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)


def cpu_options(*, threads: int) -> dict[str, Any]:
    """Options of engine onnxruntime for its CPU provider."""
    return {"providers": [{"name": CPU}], "threads": threads, "spinning": False}


def precision_of(model: onnx.ModelProto) -> str:
    """`int8` where the source is quantised already, else `fp16` or `fp32` by its weights."""
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        return "int8"
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    return "fp16" if onnx.TensorProto.FLOAT16 in kinds else "fp32"


def version_lint(model: onnx.ModelProto, engine: EngineSpec) -> tuple[str, ...]:
    """Why the engine's version would not load the model at all."""
    problems = []
    if model.ir_version > engine.max_onnx_ir:
        problems.append(f"IR {model.ir_version}, the engine loads up to {engine.max_onnx_ir}")
    if opset_of(model) > engine.max_opset:
        problems.append(f"opset {opset_of(model)}, the engine runs up to {engine.max_opset}")
    return tuple(problems)


TARGET = OnnxRuntimeCpu()
