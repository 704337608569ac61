"""Quantise: a float `.tflite` as a full-integer one, 8 bits for weights and activations.

litert-quantizer writes the file; ranges are observed here, by rules that are shared with the ONNX
passes, and biases are corrected afterwards. Inputs and outputs are int8 too, unless the operators
beside them stay in float, so that LiteRT, Ethos-U and Edge TPU share one file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import onnx

from edgekit.errors import BuildError
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.passes import Step
from edgekit_converters.passes.edits import checked, kept_label, require_nodes, step_options
from edgekit_converters.ranges import Method
from edgekit_converters.targets import Job
from edgekit_converters.targets.tflite import Port, TfliteFile
from edgekit_converters.targets.tflite.biases import corrected
from edgekit_converters.targets.tflite.convert import float_file
from edgekit_converters.targets.tflite.kept import kept_tensors, tensors_to_match
from edgekit_converters.targets.tflite.observe import Observation, activations, observe
from edgekit_converters.tflite import inlined, unpacked
from edgekit_converters.toolchains import environments
from edgekit_converters.toolchains.driving import drive
from edgekit_runtime.engines import Tensors

CHAIN = "litert-quantizer"
PRECISION = "int8"
_DRIVER = "litert_quantizer"
_FILE, _SEEN = "model.tflite", "seen.npz"
_METHODS: tuple[Method, ...] = ("minmax", "mse", "percentile", "entropy")


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this step.

    Attributes:
        calibrator: how ranges are chosen.
        percentile: for the calibrator of that name, in per cent.
        per_channel: a scale for each output channel of a weight, not one for the whole tensor.
        bias_correction: take what rounding the weights shifts the means by out of the biases.
        keep_float: names of ONNX nodes that are left in float.
    """

    calibrator: Method = "minmax"
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    per_channel: bool = True
    bias_correction: bool = True
    keep_float: tuple[str, ...] = ()


def offers(given: Mapping[str, Option], *, name: str) -> tuple[Step, ...]:
    """Each way of choosing ranges; MinMax first, which keeps the outliers that classifiers need.

    Args:
        given: options that hold for every offer.
        name: of the target.

    Raises:
        RecipeError: an option is unknown or out of range.
    """
    steps: dict[str, Step] = {}
    for method in _METHODS:
        made = step({"calibrator": method, **given}, name=name)
        steps.setdefault(made.label, made)
    return tuple(steps.values())


def step(options: Mapping[str, Option], *, name: str) -> Step:
    """The step of these options, called by the name of the target.

    Raises:
        RecipeError: an option is unknown or out of range.
    """
    parsed = checked(options, Options, of=name)
    return Step(
        name=name,
        label=_label(parsed, name),
        options=step_options(parsed),
        precision=PRECISION,
    )


def int8_file(model: Path, step: Step, job: Job) -> TfliteFile:
    """The full-integer `.tflite` of a float ONNX file in normal form; made once for all targets.

    Raises:
        ToolChainMissing: onnx2tf or litert-quantizer is not installed.
        RecipeError: `keep_float` names a node that the model does not have.
        BuildError: there are no calibration samples, or a tool refused the model.
    """
    options = checked(step.options, Options, of=step.name)
    if job.calibration is None:
        raise BuildError(
            f"{step.label} needs calibration samples, and there are none",
            hint="give samples with --data, or build in float",
        )
    loaded = onnx.load_model(model)
    require_nodes(loaded, options.keep_float, of=step.label)
    base = float_file(model, job)
    names = [port.name for port in base.inputs]
    feeds = list(job.calibration.activations(loaded, names))
    seen = _seen(base, feeds, job)
    keep: tuple[str, ...] = ()
    if options.keep_float:
        there = next(job.calibration.activations(loaded, tensors_to_match(loaded)))
        here = next(activations(base.path, base.inputs, feeds[:1]))
        keep = kept_tensors(loaded, base.path, options.keep_float, there=there, here=here)
    ranges = seen.ranges(options.calibrator, percentile=options.percentile)
    request = {"ranges": ranges, "per_channel": options.per_channel, "keep_float": keep}
    facts = {
        "float": environments.sha256(base.path),
        "lock": environments.lock_sha256(CHAIN),
        "request": hashlib.sha256(msgspec.json.encode(request, order="sorted")).hexdigest(),
        "means": options.bias_correction and _digest(seen),
    }

    def make(folder: Path) -> None:
        made = folder / _FILE
        paths = {"model": str(base.path.absolute()), "artifact": str(made.absolute())}
        drive(CHAIN, {**request, **paths}, driver=_DRIVER, folder=job.folder, produces=[made])
        raw = inlined(made.read_bytes())
        if options.bias_correction:
            raw = corrected(raw, base.path.read_bytes(), seen.means)
        made.write_bytes(raw)

    path = job.shared("tflite-int8", facts, make) / _FILE
    return _file(path, base)


def _seen(base: TfliteFile, feeds: Sequence[Tensors], job: Job) -> Observation:
    """What the float file's tensors hold on the calibration samples."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            digest.update(f"{name} {feed[name].shape}".encode())
            digest.update(feed[name].tobytes())
    facts = {"float": environments.sha256(base.path), "samples": digest.hexdigest()}

    def make(folder: Path) -> None:
        observe(base.path, base.inputs, feeds).save(folder / _SEEN)

    return Observation.load(job.shared("tflite-seen", facts, make) / _SEEN)


def _file(path: Path, base: TfliteFile) -> TfliteFile:
    """The quantised file's ports: those of the float file, whose order it keeps."""
    graph = unpacked(path.read_bytes()).subgraphs[0]
    names = [tensor.name.decode() for tensor in graph.tensors]
    before = unpacked(base.path.read_bytes()).subgraphs[0]
    old = [tensor.name.decode() for tensor in before.tensors]
    pairs = [(before.inputs, graph.inputs), (before.outputs, graph.outputs)]
    renamed = {old[a]: names[b] for olds, news in pairs for a, b in zip(olds, news, strict=True)}

    def port(of: Port) -> Port:
        return Port(name=of.name, tensor=renamed[of.tensor], axes=of.axes)

    return TfliteFile(
        path=path, inputs=tuple(map(port, base.inputs)), outputs=tuple(map(port, base.outputs))
    )


def _digest(seen: Observation) -> str:
    digest = hashlib.sha256()
    for name, mean in seen.means.items():
        digest.update(name.encode() + mean.tobytes())
    return digest.hexdigest()


def _label(options: Options, name: str) -> str:
    calibrator: str = options.calibrator
    if calibrator == "percentile" and options.percentile != Options().percentile:
        calibrator = f"percentile-{options.percentile:g}"
    parts = [name, "int8", calibrator]
    if not options.per_channel:
        parts.append("per-tensor")
    if not options.bias_correction:
        parts.append("uncorrected")
    if options.keep_float:
        parts.append(kept_label(options.keep_float))
    return "/".join(parts)
