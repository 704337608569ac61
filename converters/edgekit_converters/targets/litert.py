"""LiteRT on a CPU: a `.tflite` source is packaged as it is and run by the same engine here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgekit.errors import EngineError, ModelError
from edgekit.manifest import TensorSpec
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit_converters.passes import Style
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets import Format
from edgekit_runtime.engines import ENGINES


class LiteRt:
    """The target."""

    format: Format = "tflite"
    style: Style = "onnxruntime"

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == "litert" and engine.accelerator == "cpu"

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return precision_of(artifact)

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        return {"threads": engine.threads}

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return {"threads": engine.threads}

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "executed" if profile.is_this_machine() else "simulated"

    def finish(self, artifact: Path) -> Path:
        return artifact

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002
        return ()


def open_source(source: TfliteSource) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a TFLite model, raising `ModelError` where LiteRT cannot open it."""
    try:
        session = ENGINES.get("litert").open(source.path, options={})
    except EngineError as e:
        raise ModelError(
            f"{source.path} cannot be opened as a TFLite model: {e.message}",
            hint=e.hint or "export or download the model again",
        ) from e
    try:
        return session.inputs, session.outputs
    finally:
        session.close()


def precision_of(artifact: Path) -> str:
    """`int8` where any tensor of the file is of 8 bits, else `fp16` or `fp32`."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(artifact.read_bytes(), 0)
    kinds = set()
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        kinds |= {graph.Tensors(position).Type() for position in range(graph.TensorsLength())}
    if kinds & {schema.TensorType.INT8, schema.TensorType.UINT8}:
        return "int8"
    return "fp16" if schema.TensorType.FLOAT16 in kinds else "fp32"


def operator_counts(source: TfliteSource) -> dict[str, int]:
    """How many operators of each type, most frequent first."""
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    model = schema.Model.GetRootAs(source.path.read_bytes(), 0)
    counts: Counter[str] = Counter()
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        for position in range(graph.OperatorsLength()):
            code = model.OperatorCodes(graph.Operators(position).OpcodeIndex())
            builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            counts[names.get(builtin, str(builtin))] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


TARGET = LiteRt()
