"""OpenVINO on Intel's CPUs, GPUs and NPUs: one ONNX file, in float or as QDQ int8.

OpenVINO fuses QDQ pairs into int8 kernels itself, so a variant is one ONNX file and no IR with its
weights beside it. Passes quantise, unless a recipe asks for NNCF by this target's name and says
how; on EfficientNet-Lite0 NNCF's graphs are no faster than theirs, and further from float.

Where the profile's device is not on this machine, its arithmetic is run by OpenVINO's CPU plugin:
that is `simulated`, of a GPU and an NPU too, whose own kernels round differently. What an NPU takes
is asked of the device where it is there, else linted by OpenVINO's list of operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx
from numpy.typing import NDArray

from edgekit.errors import BuildError
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import Step, Style
from edgekit_converters.passes.edits import checked, kept_label, require_nodes, step_options
from edgekit_converters.targets import Coverage, Format, Found, Job, Product, engines, whole
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.lists import Rules, rules_of
from edgekit_converters.targets.onnxruntime_cpu import cores_here, precision_of, version_lint
from edgekit_converters.toolchains.driving import drive
from edgekit_runtime.engines import versions
from edgekit_runtime.engines.batches import SampleArrays
from edgekit_runtime.engines.openvino import ENGINE, parse

NAME = "openvino"
TOOLCHAIN = "openvino"

_DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
# A newer CPU would else compute float in bfloat16, and the golden answers would be another's.
_CPU_PRECISION = {"inference_precision": "f32"}
_GRAPHS = ("If", "Loop", "Scan")


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of NNCF.

    Attributes:
        preset: `performance` for symmetric ranges throughout, `mixed` for asymmetric activations.
        ranges: of activations, the extremes over all samples, or the mean of each sample's.
        bias_correction: layer by layer with measured shifts, or by a faster estimate, or none.
        transformer: quantise as NNCF does for transformers, with smoothing.
        keep_float: names of nodes that are left in float.
    """

    preset: Literal["performance", "mixed"] = "performance"
    ranges: Literal["minmax", "mean"] = "minmax"
    bias_correction: Literal["fast", "accurate", "none"] = "fast"
    transformer: bool = False
    keep_float: tuple[str, ...] = ()


class OpenVino:
    """The target."""

    name = NAME
    format: Format = "onnx"
    suffix = ".onnx"
    style: Style = "openvino"
    toolchains: tuple[str, ...] = (TOOLCHAIN,)
    max_samples: int | None = None
    max_trials: int | None = None
    reproducible = True

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == "openvino"

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:
        found = coverage_of(model, _rules(engine))
        if device_of(engine) != "CPU":
            return found
        # The CPU runs the graphs inside of them, which no list of operators knows.
        refused = tuple(f for f in found.refused if f.operator not in _GRAPHS)
        return Coverage(refused=refused, accelerator_macs=1.0)

    def offers(
        self, given: Mapping[str, Option], *, model: onnx.ModelProto, engine: EngineSpec
    ) -> tuple[Step, ...]:
        """NNCF's ways, where a recipe says something of them; else passes do better."""
        del model
        if not given or not any(name.startswith("int8") for name in engine.precisions):
            return ()
        ways: tuple[dict[str, Option], ...] = (
            {"preset": "performance", "ranges": "minmax"},
            {"preset": "performance", "ranges": "mean"},
            {"preset": "mixed", "ranges": "minmax"},
            {"preset": "mixed", "ranges": "mean"},
        )
        steps = {step.label: step for step in (self.step({**way, **given}) for way in ways)}
        return tuple(steps.values())

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(
            name=NAME, label=_label(parsed), options=step_options(parsed), precision="int8-qdq-u8s8"
        )

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:
        path = model if step is None else _by_nncf(model, step, job)
        if device_of(job.engine) == "CPU":
            return Product(path=path)
        graph = onnx.load_model(path)
        single = whole.single(graph)
        if single is not graph:
            path = job.folder / f"{path.stem}.single.onnx"
            path.write_bytes(serialise(single))
        return Product(path=path, placement=_placement(single, path, job))

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        options = self.options_here(job.profile, job.engine)
        if _is_installed():
            return engines.answers(product.path, inputs, engine=NAME, options=options)
        parsed = parse(options)
        request = {
            "model": str(product.path.absolute()),
            "device": parsed.device,
            "properties": parsed.properties,
        }
        return whole.answers_in(TOOLCHAIN, request, inputs, job, driver="openvino")

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:
        found = precision_of(onnx.load_model(artifact, load_external_data=False))
        # GPUs and NPUs compute float graphs in half precision.
        return "fp16" if found == "fp32" and device_of(engine) != "CPU" else found

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        device = device_of(engine)
        return {
            "device": device,
            "threads": engine.threads,
            **(_CPU_PRECISION if device == "CPU" else {}),
        }

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:
        if self.evidence(profile, engine) == "executed":
            return self.options(engine)
        return {"device": "CPU", "threads": cores_here(), **_CPU_PRECISION}

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:
        here = profile.is_this_machine() and _is_installed()
        return "executed" if here and device_of(engine) in ENGINE.devices() else "simulated"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:
        return version_lint(onnx.load_model(artifact, load_external_data=False), engine)


def device_of(engine: EngineSpec) -> str:
    """The device that a profile names in an option of a provider, or its accelerator's.

    Raises:
        BuildError: the engine opens no such device.
    """
    named = [p.options["device"] for p in engine.providers if "device" in p.options]
    device = str(named[0]) if named else _DEVICES.get(engine.accelerator, "CPU")
    if device not in _DEVICES.values():
        raise BuildError(
            f"provider option device of engine {engine.name} is {device!r}",
            hint=f"give one of {', '.join(_DEVICES.values())}",
        )
    return device


def _rules(engine: EngineSpec) -> Rules:
    rules = rules_of(NAME)
    if device_of(engine) != "NPU":
        return rules
    return msgspec.structs.replace(rules, title="Intel's NPU through OpenVINO", dynamic="refused")


def _by_nncf(model: Path, step: Step, job: Job) -> Path:
    options = checked(step.options, Options, of=NAME)
    if job.calibration is None:
        raise BuildError(f"{step.label} needs calibration samples", hint="give --data")
    graph = onnx.load_model(model)
    require_nodes(graph, options.keep_float, of=step.label)
    feeds = job.calibration.activations(graph, [spec.name for spec in job.inputs])
    samples = job.folder / f"{model.stem}.calibration.npz"
    made = job.folder / f"{model.stem}.nncf.onnx"
    whole.write_feeds(samples, job.inputs, feeds)
    try:
        drive(
            TOOLCHAIN,
            {
                "model": str(model.absolute()),
                "artifact": str(made.absolute()),
                "samples": str(samples.absolute()),
                "names": [spec.name for spec in job.inputs],
                "preset": options.preset,
                "ranges": options.ranges,
                "bias_correction": options.bias_correction,
                "transformer": options.transformer,
                "ignored": list(options.keep_float),
            },
            driver="nncf",
            folder=job.folder,
            produces=[made],
        )
    finally:
        samples.unlink()
    quantised = onnx.load_model(made)
    quantised.ir_version = min(quantised.ir_version, job.engine.max_onnx_ir)
    made.write_bytes(serialise(quantised))
    return made


def _placement(model: onnx.ModelProto, path: Path, job: Job) -> Found:
    """Where a graph runs: what the device itself says where it is there, else by the list."""
    reply: dict[str, Any] = {"there": False}
    if job.profile.is_this_machine():
        request = {
            "task": "query",
            "model": str(path.absolute()),
            "device": device_of(job.engine),
        }
        reply = drive(TOOLCHAIN, request, driver="openvino", folder=job.folder)
    if reply["there"]:
        operators = tuple(sorted({kind for _, kind in reply["left"]}))
        # Of operations left out the MACs are not known: OpenVINO names its own, not the file's.
        share = None if operators else 1.0
        return Found(accelerator_macs=share, fallback_ops=operators, evidence="estimated")
    found = coverage_of(model, _rules(job.engine))
    away = (*found.refused, *found.fallback)
    return Found(
        accelerator_macs=found.accelerator_macs,
        fallback_ops=tuple(sorted({finding.operator for finding in away})),
        evidence="linted",
    )


def _is_installed() -> bool:
    return NAME in versions()


def _label(options: Options) -> str:
    parts = [NAME, "nncf", options.preset, options.ranges]
    if options.bias_correction != "fast":
        parts.append("uncorrected" if options.bias_correction == "none" else "corrected-by-layer")
    if options.transformer:
        parts.append("transformer")
    if options.keep_float:
        parts.append(kept_label(options.keep_float))
    return "/".join(parts)


TARGET = OpenVino()
