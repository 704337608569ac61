"""LiteRT on a CPU: a `.tflite` source as it is, or an ONNX model converted and quantised for it.

The same engine runs here, so artefacts are always run before they ship; on another instruction set
that shows the arithmetic of the file and no kernel of the board, and counts as simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgekit.errors import EngineError, ModelError
from edgekit.manifest import TensorSpec
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.recipe import Option
from edgekit_converters import tflite
from edgekit_converters.passes import Step, Style
from edgekit_converters.source import TfliteSource
from edgekit_converters.targets import Coverage, Format, Job, Product
from edgekit_converters.targets.tflite import TOOLCHAINS, chain
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import SampleArrays


class LiteRt:
    """The target."""

    name = "litert"
    format: Format = "tflite"
    suffix = ".tflite"
    style: Style = "onnxruntime"
    toolchains = TOOLCHAINS
    max_samples: int | None = None
    max_trials: int | None = None
    reproducible = True

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == "litert" and engine.accelerator == "cpu"

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:  # noqa: ARG002
        return chain.coverage(model)

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,  # noqa: ARG002
        engine: EngineSpec,
    ) -> tuple[Step, ...]:
        steps = chain.offers(given, name=self.name)
        return steps if chain.PRECISION in engine.precisions else ()

    def step(self, options: Mapping[str, Option]) -> Step:
        return chain.step(options, name=self.name)

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:
        """Convert, and quantise where there is a step; a `.tflite` source stays as it is."""
        if model.suffix == self.suffix:
            return Product(path=model)
        made = chain.float_file(model, job) if step is None else chain.int8_file(model, step, job)
        return Product(path=made.path, options=made.options())

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        return chain.answers(product.path, product.options, inputs, job)

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return precision_of(artifact)

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        return {"threads": engine.threads}

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return {"threads": engine.threads}

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "executed" if profile.is_this_machine() else "simulated"

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
    """`int8` where any tensor of the file is of 8 bits, else `fp16` or `fp32`; ONNX is `fp32`."""
    if artifact.suffix != LiteRt.suffix:
        return "fp32"
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
    return tflite.operator_counts(source.path)


TARGET = LiteRt()
