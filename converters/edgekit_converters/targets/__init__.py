"""Targets make artefacts for engines: one file a technology.

A target says which engines of a profile it makes artefacts for and what they do not take, makes
them with its tool chain, runs or simulates them, and says what runs where. What was not run on the
machine it is for is never called executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import onnx
from numpy.typing import NDArray

from edgekit.manifest import TensorSpec
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.recipe import Option
from edgekit.registry import Registry
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration
from edgekit_converters.passes import PASSES, Step, Style
from edgekit_runtime.engines.batches import SampleArrays

Format = Literal["onnx", "tflite"]
Shared = Callable[[str, Mapping[str, Any], Callable[[Path], None]], Path]


class Finding(Strict, frozen=True, kw_only=True):
    """One thing that a lint found.

    Attributes:
        node: name of the node or tensor.
        operator: its type; empty for a tensor.
        reason: what is wrong, as `dynamic shape [-1, 3, -1, -1]`.
        instead: what to do: another target, CPU fallback, a pass, an option.
    """

    node: str
    operator: str
    reason: str
    instead: str = ""


class Coverage(Strict, frozen=True, kw_only=True):
    """What a target takes of a model, read off the graph before any tool is started.

    Attributes:
        refused: with any of these nothing can be made.
        fallback: these would run on the CPU beside the accelerator.
        accelerator_macs: share of MACs on the accelerator; None where it is not known.
    """

    refused: tuple[Finding, ...] = ()
    fallback: tuple[Finding, ...] = ()
    accelerator_macs: float | None = None


class Found(Strict, frozen=True, kw_only=True):
    """Where an artefact runs, as far as it is known.

    Attributes:
        accelerator_macs: share (0 to 1) of MACs on the accelerator; None where nobody can tell.
        fallback_ops: types of operators on the CPU, sorted; None where nobody can tell.
    """

    accelerator_macs: float | None
    fallback_ops: tuple[str, ...] | None
    evidence: Evidence


class Product(Strict, frozen=True, kw_only=True):
    """What a compilation gave.

    Attributes:
        path: the file that ships.
        stand_in: what runs here to check the arithmetic, where `path` itself cannot.
        estimated_ms: latency by the tool's own model of the hardware.
        options: what the board opens the file with, beyond what the profile says.
    """

    path: Path
    stand_in: Path | None = None
    placement: Found | None = None
    estimated_ms: float | None = None
    options: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What a target works with.

    Attributes:
        inputs, outputs: the source's interface, which every artefact keeps.
        calibration: samples to take ranges from; None without data.
        folder: for the files of this build; those of one call have names of their own there.
        shared: `shared(kind, facts, make)` is a folder that `make(folder)` filled once for these
            facts, which must decide its content. Profiles of one command, and later builds, share
            it; nobody writes into it afterwards.
    """

    engine: EngineSpec
    profile: DeviceProfile
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calibration: Calibration | None
    folder: Path
    shared: Shared


class Target(Protocol):
    """How artefacts for one kind of engine are made and judged.

    Attributes:
        format: the format of source that it takes; one of `tflite` takes `onnx` as well where
            `toolchains` convert it.
        suffix: of what it makes.
        style: whose rules quantised ONNX graphs follow.
        toolchains: names of the tool chains that a compilation of an ONNX file needs.
        max_samples: most samples that running its artefacts is worth; None for all.
        max_trials: most schemes that making and running them is worth; None for as many as the
            recipe says.
        reproducible: whether the same inputs give the same file, to the byte.
    """

    name: str
    format: Format
    suffix: str
    style: Style
    toolchains: tuple[str, ...]
    max_samples: int | None
    max_trials: int | None
    reproducible: bool

    def makes_for(self, engine: EngineSpec) -> bool:
        """Whether it makes artefacts for this engine of a profile."""
        ...

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:
        """What of a float model in normal form the engine takes; seconds, no tool is started."""
        ...

    def offers(
        self, given: Mapping[str, Option], *, model: onnx.ModelProto, engine: EngineSpec
    ) -> tuple[Step, ...]:
        """Ways in which the target's own tools quantise, best guess first.

        Their steps are called by the target's name, so that a recipe can ask for them. Empty where
        passes quantise for it.

        Raises:
            RecipeError: an option of `given` is unknown or out of range.
        """
        ...

    def step(self, options: Mapping[str, Option]) -> Step:
        """The own step of these options, completed by defaults and labelled.

        Raises:
            RecipeError: an option is unknown or out of range, or the target has no steps.
        """
        ...

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:
        """Make an artefact.

        Args:
            model: the file after the passes, `.onnx`, or a source of the target's own format.
            step: an own one; None for the model as it is.

        Raises:
            ToolChainMissing: what it needs is not installed.
            BuildError: the tool refused, or made nothing that can be used; the message names the
                operator or the log.
        """
        ...

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        """Outputs for samples (axis 0 counts them), as the source names and shapes them.

        Raises:
            BuildError: the simulator refused.
            EngineError: the engine refused.
        """
        ...

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:
        """What an artefact that nothing has quantised is computed in."""
        ...

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        """What the board opens artefacts with."""
        ...

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:
        """What this machine opens an artefact with, to run it or to check its arithmetic."""
        ...

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:
        """What a build on this machine proves about artefacts for this engine of the profile."""
        ...

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:
        """What in an artefact the engine is known not to take; empty where nothing is."""
        ...


TARGETS: Registry[Target] = Registry(
    "target",
    group="edgekit.targets",
    builtin={
        "edgetpu": "edgekit_converters.targets.edgetpu:TARGET",
        "ethosu": "edgekit_converters.targets.ethosu:TARGET",
        "hailo": "edgekit_converters.targets.hailo:TARGET",
        "litert": "edgekit_converters.targets.litert:TARGET",
        "onnxruntime-cpu": "edgekit_converters.targets.onnxruntime_cpu:TARGET",
        "openvino": "edgekit_converters.targets.openvino:TARGET",
        "qnn": "edgekit_converters.targets.qnn:TARGET",
        "rknn": "edgekit_converters.targets.rknn:TARGET",
        "tensorrt": "edgekit_converters.targets.tensorrt:TARGET",
    },
)


def target_for(engine: EngineSpec) -> Target | None:
    """The target that makes artefacts for an engine of a profile."""
    for name in TARGETS.names():
        target = TARGETS.get(name)
        if target.makes_for(engine):
            return target
    return None


def step_of(name: str, options: Mapping[str, Option]) -> Step:
    """The step of a pass, or a target's own one, with these options.

    Raises:
        UsageError: nothing is called so.
        RecipeError: an option is unknown or out of range.
    """
    return PASSES.get(name).step(options) if name in PASSES else TARGETS.get(name).step(options)
