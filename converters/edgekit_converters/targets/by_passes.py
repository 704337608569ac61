"""ByPasses: what targets share whose artefacts are ONNX files that passes have quantised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit.recipe import Option
from edgekit_converters.passes import Step
from edgekit_converters.targets import Format, Job, Product
from edgekit_converters.targets.engines import answers
from edgekit_runtime.engines.batches import SampleArrays


class ByPasses(ABC):
    """The part of a target that is the same for all of them."""

    name: str
    format: Format = "onnx"
    suffix = ".onnx"
    toolchains: tuple[str, ...] = ()
    max_samples: int | None = None
    max_trials: int | None = None
    reproducible = True

    def offers(
        self,
        given: Mapping[str, Option],  # noqa: ARG002
        *,
        model: onnx.ModelProto,  # noqa: ARG002
        engine: EngineSpec,  # noqa: ARG002
    ) -> tuple[Step, ...]:
        return ()

    def step(self, options: Mapping[str, Option]) -> Step:  # noqa: ARG002
        raise RecipeError(f"target {self.name} has no steps of its own: passes quantise for it")

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:  # noqa: ARG002
        return Product(path=model)

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        options = self.options_here(job.profile, job.engine)
        return answers(product.path, inputs, engine="onnxruntime", options=options)

    @abstractmethod
    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]: ...
