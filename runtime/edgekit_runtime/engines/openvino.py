"""OpenVINO: runs ONNX and IR artefacts on Intel's CPUs, GPUs and NPUs.

A device that was asked for either runs the whole model or the session is refused: no virtual device
(AUTO, HETERO, MULTI) is taken, which would choose another one without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit.manifest import Datatype, TensorSpec
from edgekit.structs import Strict
from edgekit_runtime.engines import Evidence, Tensors, hardware
from edgekit_runtime.engines.compiling import Compilation, Usable
from edgekit_runtime.engines.library import not_installed, parsed, version_of
from edgekit_runtime.engines.placed import Placed, on_accelerator, on_cpu
from edgekit_runtime.engines.tensors import misfit

DISTRIBUTION = "openvino"
_BLOB = ".blob"
_EXPORTED = f"exported{_BLOB}"
Device = Literal["CPU", "GPU", "NPU"]

_DATATYPES: Mapping[str, Datatype] = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}
# Its plugins compute these in 32 bits with a sign, whatever the model says.
_WIDE = ("UINT32", "INT64", "UINT64")
_LEAST, _MOST = -(1 << 31), (1 << 31) - 1


class Options(Strict, frozen=True, kw_only=True):
    """What a variant's `options` may say.

    Attributes:
        device: what runs the model.
        threads: threads of the CPU; other devices have none to choose.
        inference_precision: what float operators are computed in; None for the device's own
            choice, which on newer CPUs is bfloat16.
        cache_dir: a folder for OpenVINO's own cache of compiled models; None for none.
        keep_compiled: whether a device keeps what it compiled; None where it takes long: on GPUs
            and NPUs.
    """

    device: Device = "CPU"
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    inference_precision: Literal["f32", "f16", "bf16"] | None = None
    cache_dir: str | None = None
    keep_compiled: bool | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """The same, as OpenVINO names them."""
        found: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.device == "CPU":
            found["INFERENCE_NUM_THREADS"] = self.threads
        if self.inference_precision is not None:
            found["INFERENCE_PRECISION_HINT"] = self.inference_precision
        if self.cache_dir is not None:
            found["CACHE_DIR"] = self.cache_dir
        return found


class OpenVino:
    """The engine."""

    name = "openvino"
    evidence: Evidence = "run"
    evidence_note = "runs on x86 CPUs here; GPUs and NPUs were never run"

    def version(self) -> str:
        """Version of the library here, found without importing it."""
        return version_of(DISTRIBUTION, missing=_not_installed())

    def devices(self) -> tuple[str, ...]:
        """The devices of this machine, as `Options.device` names them."""
        return _devices(_library().Core())

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> OpenVinoSession:
        """Open an ONNX file, an IR file with its weights beside it, or a `.blob` of `exported`."""
        return OpenVinoSession(artifact, parse(options))

    def compilation(self, artifact: Path, *, options: Mapping[str, Any]) -> Compilation | None:
        """The model as the device exports it once it has compiled it."""
        parsed = parse(options)
        wanted = parsed.device != "CPU" if parsed.keep_compiled is None else parsed.keep_compiled
        return ExportedModel(artifact, options) if wanted else None


def parse(options: Mapping[str, Any]) -> Options:
    """Check a variant's options, raising `EngineError` that names the wrong one."""
    return parsed(options, Options, engine="openvino")


class OpenVinoSession:
    """An open model."""

    def __init__(self, artifact: Path, options: Options) -> None:
        core = _library().Core()
        if not artifact.is_file():
            raise EngineError(f"openvino cannot open {artifact}: there is no such file")
        there = _devices(core)
        if options.device not in there:
            raise EngineError(
                f"{artifact}: device {options.device} is not available, openvino has"
                f" {', '.join(there)}",
                hint="install the device's driver, or serve another variant",
            )
        try:
            compiled = (
                core.import_model(artifact.read_bytes(), options.device, options.properties)
                if artifact.suffix == _BLOB
                else core.compile_model(str(artifact), options.device, options.properties)
            )
        except RuntimeError as e:
            raise EngineError(f"openvino cannot open {artifact}: {_reason(e)}") from e
        self._artifact = artifact
        self._device = options.device
        self._placement = _placement(compiled, options.device)
        self._inputs = tuple(_spec(port, artifact) for port in compiled.inputs)
        self._outputs = tuple(_spec(port, artifact) for port in compiled.outputs)
        self._wide = [i for i, spec in enumerate(self._inputs) if spec.datatype in _WIDE]
        self._compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def providers(self) -> tuple[str, ...]:
        return (self._device,)

    @property
    def placement(self) -> Placed:
        return self._placement

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if self._request is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        # The library itself casts other datatypes, and takes a missing input from the last run.
        if (reason := misfit(self._inputs, inputs)) is not None:
            raise EngineError(f"{self._artifact.name}: {reason}")
        feeds = [np.asarray(inputs[spec.name], order="C") for spec in self._inputs]
        for index in self._wide:
            _require_narrow(feeds[index], self._inputs[index].name, of=self._artifact.name)
        try:
            # Inputs are read where they lie; outputs must outlive the next run.
            found = self._request.infer(feeds, share_inputs=True, share_outputs=False)
            return {spec.name: found[i] for i, spec in enumerate(self._outputs)}
        except (RuntimeError, ValueError, TypeError) as e:
            raise EngineError(f"{self._artifact.name}: {_reason(e)}") from e

    def exported(self) -> bytes:
        """The compiled model, for a `.blob` file.

        Raises:
            EngineError: the device exports none.
        """
        try:
            made: bytes = self._compiled.export_model().getvalue()
        except RuntimeError as e:
            raise EngineError(f"{self._artifact.name}: {_reason(e)}") from e
        return made

    def close(self) -> None:
        self._request = self._compiled = None


class ExportedModel:
    """A compiled model as the device exports it: unlike OpenVINO's own cache it may be moved."""

    def __init__(self, artifact: Path, options: Mapping[str, Any]) -> None:
        self._artifact, self._options = artifact, dict(options)
        self.holds_for = hardware.identity()

    def compile(self, folder: Path) -> None:
        made = OpenVinoSession(self._artifact, parse(self._options)).exported()
        (folder / _EXPORTED).write_bytes(made)

    def usable(self, folder: Path) -> Usable:
        return Usable(folder / _EXPORTED, self._options)


def _library() -> Any:
    try:
        import openvino  # costs a third of a second
    except ImportError as e:
        raise _not_installed() from e
    return openvino


def _devices(core: Any) -> tuple[str, ...]:
    # A machine with two GPUs has GPU.0 and GPU.1.
    return tuple(dict.fromkeys(name.partition(".")[0] for name in core.available_devices))


def _require_narrow(array: NDArray[Any], name: str, *, of: str) -> None:
    """Refuse integers that would be answered with others, raising `EngineError`."""
    if array.size and not _LEAST <= array.min() <= array.max() <= _MOST:
        raise EngineError(
            f"{of}: input {name!r} has values beyond 32 bits, in which openvino computes integers",
            hint="serve a variant of onnxruntime, or give the model INT32",
        )


def _placement(compiled: Any, device: Device) -> Placed:
    """A device compiles the whole model or refuses it, and says that it did."""
    if device == "CPU":
        return on_cpu()
    runs_on = tuple(compiled.get_property("EXECUTION_DEVICES"))
    source = f"openvino's EXECUTION_DEVICES: {', '.join(runs_on)}"
    there = all(name.partition(".")[0] == device for name in runs_on)
    return on_accelerator(source) if there else on_cpu(source)


def _spec(port: Any, artifact: Path) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    if kind not in _DATATYPES:
        raise EngineError(f"{artifact}: {port.any_name} is a {kind}, which cannot be served")
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise EngineError(f"{artifact}: {port.any_name} has no fixed number of axes")
    sizes = tuple(-1 if axis.is_dynamic else axis.get_length() for axis in shape)
    return TensorSpec(name=port.any_name, datatype=_DATATYPES[kind], shape=sizes)


def _reason(error: Exception) -> str:
    """The last line of a message that begins with places in OpenVINO's own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _not_installed() -> EngineNotInstalled:
    return not_installed("openvino", hint="pip install openvino")


ENGINE = OpenVino()
