"""Hailo: an ONNX model, quantised and compiled by Hailo's Dataflow Compiler into a HEF.

The compiler is in no package index and has never run here: the lint reads the ONNX graph against
its guide, the driver follows its guide, and neither has met it. What a HEF answers is told by the
compiler's own emulator, which runs the quantised model that the HEF was made from; that counts as
simulated, what ships as linted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit import storage
from edgekit.errors import BuildError, RecipeError
from edgekit.manifest import TensorSpec
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.recipe import Option
from edgekit_converters.normalise import fixed, serialise
from edgekit_converters.passes import Step, Style
from edgekit_converters.targets import Coverage, Format, Found, Job, Product, whole
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.lists import rules_of
from edgekit_converters.toolchains import environments
from edgekit_converters.toolchains.driving import Limits, drive
from edgekit_runtime.engines.batches import SampleArrays
from edgekit_runtime.engines.tensors import DTYPES

_COMPILER = "hailo"
_ARCH = "arch"
_GIVEN, _SAMPLES, _MADE, _ARCHIVE = "model.onnx", "samples.npy", "model.hef", "model.har"
# The emulator's speed is not known; a few hundred samples would take hours if it takes a minute.
_MAX_SAMPLES = 80
_IMAGE_AXES = 4


class Hailo:
    """The target.

    Args:
        limits: of one call of the compiler, which takes hours on large models.
    """

    name = "hailo"
    format: Format = "onnx"
    suffix = ".hef"
    style: Style = "onnxruntime"
    toolchains: tuple[str, ...] = (_COMPILER,)
    max_samples: int | None = _MAX_SAMPLES
    max_trials: int | None = 1
    reproducible = True

    def __init__(self, *, limits: Limits = Limits(time_s=7200.0)) -> None:  # noqa: B008 - frozen
        self._limits = limits

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == "hailo"

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:  # noqa: ARG002
        return coverage_of(model, rules_of("hailo"))

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,  # noqa: ARG002
        engine: EngineSpec,
    ) -> tuple[Step, ...]:
        step = self.step(given)
        return (step,) if step.precision in engine.precisions else ()

    def step(self, options: Mapping[str, Option]) -> Step:
        if options:
            raise RecipeError(f"target hailo has no option {next(iter(options))!r}")
        return Step(name=self.name, label="hailo/int8", options={}, precision="int8")

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:
        environments.python_of(_COMPILER)
        if step is None or job.calibration is None:
            raise BuildError(
                "Hailo computes in integers, and this model is in float",
                hint="give samples with --data, so that the Dataflow Compiler can quantise it",
            )
        given = onnx.load_model(model)
        _require_one(job.inputs, what="input", do="make inputs that never change constants: --fix")
        _require_one(job.outputs, what="output", do="leave out of the model what is not needed")
        samples = _samples(given, job)
        only = job.inputs[0]
        raw = serialise(fixed(given, {only.name: (1, *only.shape[1:])}))
        facts = {
            "model": environments.sha256(model),
            "arch": arch_of(job.engine),
            "samples": hashlib.sha256(samples.tobytes()).hexdigest(),
            "compiler": environments.lock_sha256(_COMPILER),
        }
        make = partial(_compile, raw, samples, arch=arch_of(job.engine), limits=self._limits)
        folder = job.shared(_COMPILER, facts, make)
        # A HEF runs on the accelerator alone, or is not made.
        placement = Found(accelerator_macs=1.0, fallback_ops=(), evidence="linted")
        return Product(
            path=folder / _MADE,
            stand_in=folder / _ARCHIVE,
            placement=placement,
            # A HEF has its own names, and takes samples one by one.
            options={
                "inputs": [_by_sample(spec) for spec in job.inputs],
                "outputs": [_by_sample(spec) for spec in job.outputs],
            },
        )

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        """What the emulator answers, in the source's layout.

        Raises:
            BuildError: it refused, or answers in another shape.
        """
        assert product.stand_in is not None
        request = {"archive": str(product.stand_in.absolute()), "arch": arch_of(job.engine)}
        found = whole.answers_in(
            _COMPILER, request, inputs, job, driver="hailo", limits=self._limits
        )
        (only,) = job.outputs
        return {only.name: _as_source(found[only.name], only)}

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return "int8"

    def options(self, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "linted"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002
        return ()


def arch_of(engine: EngineSpec) -> str:
    """The chip, as `hailo8l`, raising `BuildError` where the profile does not name it."""
    for provider in engine.providers:
        if _ARCH in provider.options:
            return str(provider.options[_ARCH])
    raise BuildError(
        f"no provider of engine {engine.name} has the option {_ARCH}",
        hint="name the chip in the profile: arch: hailo8l",
    )


def _require_one(specs: Sequence[TensorSpec], *, what: str, do: str) -> None:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise BuildError(
            f"the Hailo target takes models of one {what}, this one has {names}", hint=do
        )


def _by_sample(spec: TensorSpec) -> dict[str, Any]:
    own = {"name": spec.name, "datatype": spec.datatype}
    return {**own, "shape": [-1, *spec.shape[1:]]}


def _as_source(answers: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """The emulator's answers, channels last, as the source shapes one sample of them."""
    shape = (len(answers), *spec.shape[1:])
    turned = np.moveaxis(answers, -1, 1) if answers.ndim == len(shape) == _IMAGE_AXES else answers
    if -1 not in shape and turned.size != prod(shape):
        raise BuildError(
            f"Hailo's emulator answers {list(answers.shape)} for output {spec.name!r}"
            f" {list(spec.shape)}"
        )
    return turned.reshape(shape).astype(DTYPES[spec.datatype], copy=False)


def _samples(model: onnx.ModelProto, job: Job) -> NDArray[np.float32]:
    """Calibration samples as the compiler reads them: axis 0 counts, channels last."""
    assert job.calibration is not None
    only = job.inputs[0]
    feeds = job.calibration.activations(model, [only.name])
    values = np.concatenate([feed[only.name] for feed in feeds]).astype(np.float32)
    return np.moveaxis(values, 1, -1) if values.ndim == _IMAGE_AXES else values


def _compile(
    model: bytes, samples: NDArray[np.float32], folder: Path, *, arch: str, limits: Limits
) -> None:
    given, npy = folder / _GIVEN, folder / _SAMPLES
    made, archive = folder / _MADE, folder / _ARCHIVE
    storage.write(given, model)
    np.save(npy, samples)
    request = {
        "task": "compile",
        "model": str(given.absolute()),
        "samples": str(npy.absolute()),
        "artifact": str(made.absolute()),
        "archive": str(archive.absolute()),
        "arch": arch,
    }
    files = [made, archive]
    drive(_COMPILER, request, driver="hailo", folder=folder, produces=files, limits=limits)
    given.unlink()
    npy.unlink()


TARGET = Hailo()
