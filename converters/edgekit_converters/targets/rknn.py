"""Rockchip NPUs (rk3588, rk3576, rk3566, rv1106 …): `.rknn` files by rknn-toolkit2.

The toolkit quantises by itself, so its ways of doing that are steps of this target. Its simulator
runs the arithmetic of what it made, int8 or half precision, and counts as simulated; what runs
where is its compiler's own table and counts as estimated. Neither has ever been compared with a
chip here. The same model, samples and options give the same answers, but not the same bytes: the
toolkit writes another file each time.

A profile's provider option `target_platform` names the chip, as the toolkit calls it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.errors import BuildError
from edgekit.manifest import TensorSpec
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.recipe import Option
from edgekit_converters.normalise import serialise
from edgekit_converters.passes import Step, Style
from edgekit_converters.passes.edits import (
    checked,
    is_standard,
    require_nodes,
    step_options,
)
from edgekit_converters.targets import Coverage, Finding, Format, Job, Product
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.lists import Rules, rules_of
from edgekit_converters.targets.rknn_given import (
    NAME,
    Options,
    label_of,
    prepared,
    recorded,
    tensors_of,
    with_record,
)
from edgekit_converters.targets.rknn_layers import Layer, cycles_of, in_float, placement_of
from edgekit_converters.toolchains import environments
from edgekit_converters.toolchains.driving import drive
from edgekit_converters.toolchains.readable import is_readable
from edgekit_runtime.engines.batches import SampleArrays, iter_batches
from edgekit_runtime.engines.tensors import DTYPES

_PLATFORM = "target_platform"
# They have no half precision, nor what normalises on the other chips. Tried on rv1106; the others
# are of its family.
_INTEGER_ONLY = ("rv1103", "rv1103b", "rv1106", "rv1106b")
_NOT_ON_INTEGER_ONLY = ("GRU", "InstanceNormalization", "LayerNormalization", "LpNormalization")
# Quantising it makes the toolkit die.
_FLOAT_ONLY = ("LSTM",)
_DTYPES = {8: "w8a8", 16: "w16a16i_dfp"}


class Rknn:
    """The target."""

    name = NAME
    format: Format = "onnx"
    suffix = ".rknn"
    style: Style = "onnxruntime"
    toolchains: tuple[str, ...] = (NAME,)
    # A sample takes about 0.1 s on EfficientNet-Lite0, a trial 15 s before the first one.
    max_samples: int | None = 80
    max_trials: int | None = 6
    reproducible = False

    def makes_for(self, engine: EngineSpec) -> bool:
        return engine.name == NAME

    def coverage(self, model: onnx.ModelProto, engine: EngineSpec) -> Coverage:
        found = coverage_of(model, rules_for(platform_of(engine)))
        fatal = tuple(_fatal(model, integer_only=platform_of(engine) in _INTEGER_ONLY))
        return msgspec.structs.replace(found, refused=(*found.refused, *fatal))

    def offers(
        self, given: Mapping[str, Option], *, model: onnx.ModelProto, engine: EngineSpec
    ) -> tuple[Step, ...]:
        """What the profile lists of `int8` (by extremes, then by entropy) and `int16`."""
        checked(given, Options, of=NAME)
        if any(is_standard(node, *_FLOAT_ONLY) for node in model.graph.node):
            return ()
        ways: dict[str, tuple[dict[str, Option], ...]] = {
            "int8": ({}, {"algorithm": "kl_divergence"}),
            "int16": ({"bits": 16},),
        }
        steps = [self.step({**way, **given}) for p in engine.precisions for way in ways.get(p, ())]
        allowed = (step for step in steps if step.precision in engine.precisions)
        found = tuple({step.label: step for step in allowed}.values())
        if not found or "keep_float" in given or platform_of(engine) not in _INTEGER_ONLY:
            return found
        # Without the option that leaves nodes in float, a search does not try it.
        return tuple(_all_integer(step) for step in found)

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(
            name=NAME,
            label=label_of(parsed),
            options=step_options(parsed),
            precision=f"int{parsed.bits}",
        )

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:
        options = None if step is None else checked(step.options, Options, of=NAME)
        platform = platform_of(job.engine)
        if platform in _INTEGER_ONLY and (options is None or options.keep_float):
            raise BuildError(
                f"{platform} computes in integers only, and half precision is asked for",
                hint="give samples with --data, and build for int8",
            )
        graph = prepared(onnx.load_model(model))
        if options is not None:
            require_nodes(graph, options.keep_float, of=NAME)
        given = job.folder / f"{model.stem}.given.onnx"
        artifact = job.folder / f"{model.stem}.rknn"
        given.write_bytes(serialise(recorded(graph, options)))
        reply = self._build(given, job, artifact=artifact)
        layers = msgspec.convert(reply["layers"], tuple[Layer, ...])
        return Product(
            path=artifact,
            stand_in=given,
            placement=placement_of(layers),
            options={
                "inputs": [_single(spec) for spec in job.inputs],
                "outputs": [_single(spec) for spec in job.outputs],
            },
            notes=_notes(layers, hybrid=bool(reply["kept"])),
        )

    def answers(self, product: Product, inputs: SampleArrays, job: Job) -> dict[str, NDArray[Any]]:
        given = product.stand_in
        if given is None:
            raise BuildError(f"{product.path.name} cannot be simulated: its model is not kept")
        with tempfile.TemporaryDirectory(dir=job.folder, prefix="rknn-samples-") as own:
            folder = Path(own).absolute()
            feeds = list(iter_batches(job.inputs, inputs, size=1))
            paths = {}
            for number, spec in enumerate(job.inputs):
                paths[spec.name] = str(folder / f"{number}.npy")
                np.save(paths[spec.name], np.stack([feed[spec.name] for feed in feeds]))
            self._build(given, job, feeds=paths, answers=folder / "answers.npz")
            with np.load(folder / "answers.npz") as found:
                return {
                    spec.name: _answer(found[str(number)], spec)
                    for number, spec in enumerate(job.outputs)
                }

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:  # noqa: ARG002
        return "fp16"

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        """What the profile says beside the chip's name: `core_mask`."""
        options = {k: v for provider in engine.providers for k, v in provider.options.items()}
        return {name: value for name, value in options.items() if name != _PLATFORM}

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:  # noqa: ARG002
        return self.options(engine)

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:  # noqa: ARG002
        return "simulated"

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:  # noqa: ARG002
        return () if is_readable(artifact) else (f"{artifact.name} is not an .rknn file",)

    def _build(
        self,
        given: Path,
        job: Job,
        *,
        artifact: Path | None = None,
        feeds: Mapping[str, str] | None = None,
        answers: Path | None = None,
    ) -> dict[str, Any]:
        """Build, and ship or simulate what was built: the toolkit simulates no file."""
        graph, options = with_record(onnx.load_model(given))
        form = None if options is None else self._quantised(given, graph, options, job)
        request = {
            **_asked(given, job),
            "do": "build",
            "quantised": None if form is None else str(form.absolute()),
            "keep_float": [] if options is None else tensors_of(graph, options.keep_float),
            "artifact": None if artifact is None else str(artifact.absolute()),
            "feeds": feeds,
            "answers": None if answers is None else str(answers),
        }
        made = [path for path in (artifact, answers) if path is not None]
        return drive(NAME, request, driver=NAME, folder=job.folder, produces=made)

    def _quantised(self, given: Path, graph: onnx.ModelProto, options: Options, job: Job) -> Path:
        """The folder with the toolkit's quantised form, the same whatever stays in float."""
        if job.calibration is None:
            raise BuildError(
                f"{label_of(options)} needs calibration samples, and there are none",
                hint="give samples with --data",
            )
        names = [spec.name for spec in job.inputs]
        way = {
            "quantized_dtype": _DTYPES[options.bits],
            "quantized_algorithm": options.algorithm,
            "quantized_method": options.method,
        }

        def samples() -> Iterator[dict[str, NDArray[Any]]]:
            assert job.calibration is not None
            return islice(job.calibration.activations(graph, names), options.samples)

        def make(folder: Path) -> None:
            with tempfile.TemporaryDirectory(dir=job.folder, prefix="rknn-ranges-") as own:
                count = 0
                for count, sample in enumerate(samples(), start=1):
                    for number, name in enumerate(names):
                        np.save(Path(own, f"{count - 1}.{number}.npy"), sample[name])
                request = {
                    **_asked(given, job),
                    **way,
                    "do": "ranges",
                    "ranges": str(Path(own).absolute()),
                    "samples": count,
                    "quantised": str(folder.absolute()),
                }
                made = [folder / f"model.{part}" for part in ("model", "data", "quantization.cfg")]
                drive(NAME, request, driver=NAME, folder=job.folder, produces=made)

        facts = {
            "model": hashlib.sha256(serialise(graph)).hexdigest(),
            "samples": _digest(samples(), names),
            "platform": platform_of(job.engine),
            "way": way,
            "toolchain": environments.lock_sha256(NAME),
        }
        return job.shared("rknn-quantised", facts, make)


def _all_integer(step: Step) -> Step:
    options = {name: value for name, value in step.options.items() if name != "keep_float"}
    return msgspec.structs.replace(step, options=options)


def platform_of(engine: EngineSpec) -> str:
    """The chip of an engine of a profile, as the toolkit calls it.

    Raises:
        BuildError: the profile does not name it.
    """
    for provider in engine.providers:
        if _PLATFORM in provider.options:
            return str(provider.options[_PLATFORM])
    raise BuildError(
        f"engine {engine.name} of the profile does not say which chip it is for",
        hint=f"give a provider of it the option {_PLATFORM}, as rk3588",
    )


def rules_for(platform: str) -> Rules:
    """What the NPU of a chip takes, by the toolkit's compiler."""
    rules = rules_of(NAME)
    return rules.without(*_NOT_ON_INTEGER_ONLY) if platform in _INTEGER_ONLY else rules


def _fatal(model: onnx.ModelProto, *, integer_only: bool) -> Iterator[Finding]:
    """Nodes that make the toolkit die; rules know operators and attributes, and these are less."""
    for node in model.graph.node:
        if integer_only and is_standard(node, "LayerNormalization"):
            yield Finding(
                node=node.name or node.output[0],
                operator=node.op_type,
                reason="makes the tool kit die on chips that compute in integers only",
                instead="build for a CPU engine, or export the model with its parts written out",
            )
        modes = [a.s for a in node.attribute if a.name == "mode"]
        if is_standard(node, "Resize") and b"cubic" in modes:
            yield Finding(
                node=node.name,
                operator=node.op_type,
                reason="cubic interpolation makes the toolkit die",
                instead="resize by linear interpolation",
            )
        elif integer_only and is_standard(node, *_FLOAT_ONLY):
            yield Finding(
                node=node.name,
                operator=node.op_type,
                reason="quantising it makes the toolkit die, and the chip has no half precision",
                instead="build for another engine of the board",
            )


def _asked(given: Path, job: Job) -> dict[str, Any]:
    """What every request says of the model."""
    return {
        "model": str(given.absolute()),
        "inputs": [[spec.name, _single(spec)["shape"]] for spec in job.inputs],
        "target_platform": platform_of(job.engine),
    }


def _single(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as the `.rknn` has it: its shapes are fixed, for one sample."""
    shape = [1 if size == -1 and axis == 0 else size for axis, size in enumerate(spec.shape)]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape}


def _digest(samples: Iterator[dict[str, NDArray[Any]]], names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for name in names:
            digest.update(f"{sample[name].dtype.str}{sample[name].shape}".encode())
            digest.update(np.ascontiguousarray(sample[name]).tobytes())
    return digest.hexdigest()


def _answer(found: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """One output of all samples [n, …], as the source shapes it."""
    inner = spec.shape[1:] if spec.shape[:1] in ((-1,), (1,)) else spec.shape
    try:
        shaped = found.reshape(len(found), *inner)
    except ValueError as e:
        raise BuildError(
            f"the simulator answers output {spec.name!r} with shape {list(found.shape[1:])},"
            f" and the model has {list(spec.shape)}"
        ) from e
    return shaped.astype(DTYPES[spec.datatype], copy=False)


def _notes(layers: Sequence[Layer], *, hybrid: bool) -> tuple[str, ...]:
    notes = [
        "the toolkit writes another file each time: rebuilding gives other bytes and the same"
        " answers",
        f"its compiler estimates {cycles_of(layers):,} NPU cycles for an inference; what runs on"
        " the CPU is not in them",
    ]
    if hybrid:
        notes.append(f"{len(in_float(layers))} of {len(layers)} layers are in half precision")
    return tuple(notes)


TARGET = Rknn()
