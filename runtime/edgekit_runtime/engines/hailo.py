"""Hailo: runs `.hef` artefacts on a Hailo-8 or Hailo-8L through HailoRT's Python API.

Never run: the library is in no package index, and no such chip is here. What is written follows
pyhailort's published source (VDevice, InferModel); what is tested is all that happens around it.

A HEF has its own names and puts channels last, so a variant's options carry the model's interface,
as the build writes it there. HailoRT takes one sample at a time and several in one job, so axis 0
is the caller's. Devices are shared: several models in one process take turns by HailoRT's own
scheduler, which needs them on one virtual device.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit.manifest import TensorSpec
from edgekit.structs import Strict
from edgekit_runtime.engines import Evidence, Tensors
from edgekit_runtime.engines.library import not_installed, parsed, version_of
from edgekit_runtime.engines.placed import Placed, on_accelerator
from edgekit_runtime.engines.tensors import DTYPES, Layout, channels_last, misfit

PACKAGE = "hailort"
MAGIC = bytes.fromhex("01484546")

# What HailoRT converts to and from by itself, by the names of its FormatType.
_FORMATS = {"FP32": "FLOAT32", "UINT8": "UINT8", "UINT16": "UINT16"}
_IMAGE_AXES = 4


class Options(Strict, frozen=True, kw_only=True):
    """What a variant's `options` may say.

    Attributes:
        inputs, outputs: the model's, in the file's order; axis 0 is the caller's.
        layout: of tensors with four axes, as they are given; the file has channels last.
        timeout_s: of one run.
    """

    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    layout: Layout = "nchw"
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0


class Hailo:
    """The engine."""

    name = "hailo"
    evidence: Evidence = "never run"
    evidence_note = "written by pyhailort's published source; its library and chip are not here"

    def version(self) -> str:
        """Version of the library here, found without importing it."""
        return version_of(PACKAGE, missing=_not_installed())

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> HailoSession:
        """Open a `.hef` file; the library reads it and configures the chip."""
        return HailoSession(artifact, parse(options))


def parse(options: Mapping[str, Any]) -> Options:
    """Check a variant's options, raising `EngineError` that names the wrong one."""
    found = parsed(options, Options, engine="hailo")
    for spec in (*found.inputs, *found.outputs):
        if spec.datatype not in _FORMATS or spec.shape[:1] != (-1,) or -1 in spec.shape[1:]:
            raise EngineError(
                f"options of engine hailo are not valid: {spec.name!r} is {spec.datatype}"
                f" {list(spec.shape)}, and a HEF has {', '.join(_FORMATS)} of fixed shapes behind"
                " axis 0, which is -1"
            )
    return found


def require_hef(artifact: Path) -> None:
    """Refuse what is no HEF before the library reads it, raising `EngineError`."""
    try:
        with artifact.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as e:
        raise EngineError(f"hailo cannot open {artifact}: {e.strerror or e}") from e
    if start != MAGIC:
        raise EngineError(f"hailo cannot open {artifact}: it is not a HEF")


class _Devices:
    """The one virtual device of this process, while a session needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._device: Any = None
        self._users = 0

    def take(self, library: Any) -> Any:
        with self._lock:
            if self._device is None:
                params = library.VDevice.create_params()
                params.scheduling_algorithm = library.HailoSchedulingAlgorithm.ROUND_ROBIN
                self._device = library.VDevice(params)
            self._users += 1
            return self._device

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._device.release()
                self._device = None


_devices = _Devices()


class HailoSession:
    """An open HEF."""

    def __init__(self, artifact: Path, options: Options) -> None:
        require_hef(artifact)
        try:
            library = import_module("hailo_platform")
        except ImportError as e:
            raise _not_installed() from e
        self._artifact = artifact
        self._options = options
        self._error: type[Exception] = library.HailoRTException
        try:
            device = _devices.take(library)
        except self._error as e:
            raise EngineError(
                f"hailo finds no device: {e}",
                hint="hailortcli scan shows devices; driver and firmware must be of one version",
            ) from e
        try:
            self._configured: Any = self._configure(device, library)
        except BaseException:
            _devices.give_back()
            raise

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._options.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._options.outputs

    @property
    def providers(self) -> tuple[str, ...]:
        return ("HAILO",)

    @property
    def placement(self) -> Placed:
        return on_accelerator()

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if self._configured is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        if (reason := misfit(self.inputs, inputs)) is not None:
            raise EngineError(f"{self._artifact.name}: {reason}")
        layout = self._options.layout
        given = [channels_last(inputs[spec.name], layout=layout) for spec in self.inputs]
        rows = len(given[0])
        if any(len(array) != rows for array in given):
            raise EngineError(f"{self._artifact.name}: inputs hold different numbers of samples")
        made = [
            np.empty((rows, *shape), DTYPES[spec.datatype])
            for spec, shape in zip(self.outputs, self._output_shapes, strict=True)
        ]
        try:
            jobs = [self._bound(given, made, row) for row in range(rows)]
            self._configured.run(jobs, round(self._options.timeout_s * 1000))
        except self._error as e:
            raise EngineError(f"{self._artifact.name}: {e}") from e
        return {
            spec.name: self._to_model(array, spec)
            for spec, array in zip(self.outputs, made, strict=True)
        }

    def close(self) -> None:
        if self._configured is not None:
            self._configured = None
            _devices.give_back()

    def _configure(self, device: Any, library: Any) -> Any:
        options, artifact = self._options, self._artifact
        try:
            model = device.create_infer_model(str(artifact))
            for edges, specs, what in (
                (model.inputs, options.inputs, "inputs"),
                (model.outputs, options.outputs, "outputs"),
            ):
                if len(edges) != len(specs):
                    raise EngineError(
                        f"{artifact}: it has {len(edges)} {what}, its options name {len(specs)}"
                    )
                for edge, spec in zip(edges, specs, strict=True):
                    kind = getattr(library.FormatType, _FORMATS[spec.datatype])
                    edge.set_format_type(kind)
            self._input_names = tuple(edge.name for edge in model.inputs)
            self._output_names = tuple(edge.name for edge in model.outputs)
            self._output_shapes = tuple(tuple(edge.shape) for edge in model.outputs)
            return model.configure()
        except self._error as e:
            raise EngineError(
                f"hailo cannot open {artifact}: {e}",
                hint="the HEF must be for this chip, and as new as its HailoRT at most",
            ) from e

    def _bound(self, given: list[NDArray[Any]], made: list[NDArray[Any]], row: int) -> Any:
        bindings = self._configured.create_bindings()
        for name, array in zip(self._input_names, given, strict=True):
            bindings.input(name).set_buffer(array[row])
        for name, array in zip(self._output_names, made, strict=True):
            bindings.output(name).set_buffer(array[row])
        return bindings

    def _to_model(self, array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
        return to_model(array, spec, layout=self._options.layout, of=self._artifact.name)


def to_model(array: NDArray[Any], spec: TensorSpec, *, layout: Layout, of: str) -> NDArray[Any]:
    """A file's answers, axis 0 counting samples and channels last, as the model shapes them.

    Raises:
        EngineError: they have another size than the options say.
    """
    shape = (len(array), *spec.shape[1:])
    images = array.ndim == len(shape) == _IMAGE_AXES
    turned = np.moveaxis(array, -1, 1) if images and layout == "nchw" else array
    try:
        return np.ascontiguousarray(turned).reshape(shape)
    except ValueError as e:
        raise EngineError(
            f"{of}: output {spec.name!r} has shape {list(array.shape)}, and its options say"
            f" {list(spec.shape)}"
        ) from e


def _not_installed() -> EngineNotInstalled:
    hint = "on Raspberry Pi OS: apt install hailo-all (package python3-hailort)"
    return not_installed("hailo", hint=hint)


ENGINE = Hailo()
