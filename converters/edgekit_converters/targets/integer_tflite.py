"""IntegerTflite: what targets share whose compilers take a full-integer `.tflite`.

ONNX is converted and quantised once for all of them (`tflite.chain`); a `.tflite` source is taken
as it is. What ships is the compiler's file; what runs here is the file that the compiler was given,
in LiteRT: the same integers, on other kernels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnx
from numpy.typing import NDArray

from edgekit.errors import BuildError, RecipeError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit.recipe import Option
from edgekit_converters import tflite
from edgekit_converters.passes import KEEP, Step, Style
from edgekit_converters.targets import Coverage, Format, Job, Product
from edgekit_converters.targets.tflite import chain
from edgekit_converters.toolchains import environments
from edgekit_runtime.engines.batches import SampleArrays


class IntegerTflite(ABC):
    """The part of a target that is the same for all of them.

    Attributes:
        compiler: name of the tool chain that makes what ships.
    """

    name: str
    compiler: str
    toolchains: tuple[str, ...]
    format: Format = "tflite"
    suffix = ".tflite"
    style: Style = "onnxruntime"
    max_samples: int | None = None
    max_trials: int | None = None
    reproducible = True

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,  # noqa: ARG002
        engine: EngineSpec,  # noqa: ARG002
    ) -> tuple[Step, ...]:
        self._require_integer(given)
        return tuple(_all_integer(step) for step in chain.offers(given, name=self.name))

    def step(self, options: Mapping[str, Option]) -> Step:
        self._require_integer(options)
        return _all_integer(chain.step(options, name=self.name))

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:
        if model.suffix == self.suffix:
            require_integer(model)
        # Whether it can end well is asked before minutes are spent.
        environments.python_of(self.compiler)
        if model.suffix == self.suffix:
            given, options = model, {}
            raw = tflite.inlined(given.read_bytes())
        elif step is None:
            raise BuildError(
                f"{self.name} takes full-integer models, and this one is in float",
                hint="give samples with --data, so that it can be quantised",
            )
        else:
            file = chain.int8_file(model, step, job)
            given, options = file.path, file.options()
            # Coverage has refused shapes that depend on values.
            raw = tflite.settled(given.read_bytes())
        require_integer(given)
        product = self.finish(given, raw, job)
        return msgspec.structs.replace(
            product, stand_in=given, options={**options, **product.options}
        )

    @abstractmethod
    def finish(self, given: Path, raw: bytes, job: Job) -> Product:
        """Compile a full-integer file, raising `BuildError` as `compile` does.

        Args:
            given: what runs here.
            raw: the same model as compilers take it.
        """

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        return chain.answers(product.stand_in or product.path, product.options, inputs, job)

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return "int8"

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return {"threads": engine.threads}

    def _require_integer(self, options: Mapping[str, Option]) -> None:
        if options.get(KEEP):
            raise RecipeError(
                f"option {KEEP} of {self.name}: its accelerator computes in integers only",
                hint=f"leave {KEEP} out",
            )


def _all_integer(step: Step) -> Step:
    """The step without the option that leaves nodes in float: a search is not to try it."""
    options = {name: value for name, value in step.options.items() if name != KEEP}
    return msgspec.structs.replace(step, options=options)


def with_conversion(rules: Coverage, model: onnx.ModelProto) -> Coverage:
    """Coverage by an accelerator's rules, with what stops the conversion to TFLite before."""
    stopped = chain.coverage(model).refused
    told = {finding.node for finding in stopped}
    refused = (*stopped, *(finding for finding in rules.refused if finding.node not in told))
    return msgspec.structs.replace(rules, refused=refused)


def require_integer(path: Path) -> None:
    """Raise `BuildError` where no operator of a file computes in integers."""
    found = [o for o in tflite.operators(path) if o.name not in tflite.CONVERSIONS]
    if found and all(operator.is_float for operator in found):
        raise BuildError(
            f"{path.name} is in float, {found[0].name} and all after it, and the compiler takes"
            " integer models",
            hint="quantise the model to full integer before the build, or give the ONNX model and"
            " samples with --data",
        )


def placement(given: Path, compiled: Path, *, operator: str) -> tuple[float | None, set[str]]:
    """Share of MACs that a compiler put on the accelerator, and the operators it left.

    What it took is one custom operator in its file; all others there run on the CPU.

    Args:
        given, compiled: the file before and after.
        operator: name of the custom operator.
    """
    left = [found for found in tflite.operators(compiled) if found.name != operator]
    total = tflite.facts(given).macs
    if any(found.macs is None for found in left):
        share = None
    elif total:
        share = 1.0 - sum(found.macs or 0 for found in left) / total
    else:
        share = None if left else 1.0
    return share, {found.name for found in left}
