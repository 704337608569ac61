"""onnxruntime: runs ONNX artefacts on the CPU and on every execution provider its build carries.

A provider that was asked for either runs the model or the session is refused: onnxruntime's own
habit of going on with the CPU would make a placement contract worthless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit.manifest import Datatype, TensorSpec
from edgekit.profile import Provider
from edgekit.structs import Strict
from edgekit_runtime.engines import Tensors, plugins
from edgekit_runtime.engines.library import parsed
from edgekit_runtime.engines.tensors import misfit

CPU = "CPUExecutionProvider"
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn", "onnxruntime-openvino")

_DATATYPES: Mapping[str, Datatype] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_ERRORS_ONLY = 3
_FATAL_ONLY = 4


class Options(Strict, frozen=True, kw_only=True):
    """What a variant's `options` may say.

    Attributes:
        providers: execution providers in order of preference, each with its options.
        threads: threads within one operator.
        spinning: whether these threads wait busily; costs up to twice the CPU time.
        reference_kernels: computes node by node as the file says, and a quantised graph in float
            between its pairs: slow, and a second opinion on its arithmetic.
    """

    providers: Annotated[tuple[Provider, ...], msgspec.Meta(min_length=1)] = (Provider(name=CPU),)
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    spinning: bool = False
    reference_kernels: bool = False


class OnnxRuntime:
    """The engine."""

    name = "onnxruntime"

    def version(self) -> str:
        """Version of the library here, found without importing it."""
        installed = (_installed(distribution) for distribution in DISTRIBUTIONS)
        # A build by a board's vendor may be installed without a distribution record.
        return next(filter(None, installed), None) or str(_library().__version__)

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> OnnxSession:
        """Open an ONNX file by its path, so that no second copy of its weights is held."""
        return OnnxSession(artifact, parse(options))


def parse(options: Mapping[str, Any]) -> Options:
    """Check a variant's options, raising `EngineError` that names the wrong one."""
    return parsed(options, Options, engine="onnxruntime")


def require(asked: Sequence[str], there: Sequence[str], *, where: str) -> None:
    """Raise `EngineError` for the first provider of `asked` that is not among `there`."""
    for name in asked:
        if name not in there:
            raise EngineError(
                f"{where}: {name} is not available, onnxruntime has {', '.join(there)}",
                hint="install the onnxruntime build of this board, or serve another variant",
            )


class OnnxSession:
    """An open ONNX model."""

    def __init__(self, artifact: Path, options: Options) -> None:
        ort = _library()
        asked = [provider.name for provider in options.providers]
        loaded = [p for p in options.providers if plugins.is_plugin(ort, p.name)]
        built_in = [p for p in options.providers if p not in loaded]
        require([p.name for p in built_in], ort.get_available_providers(), where=str(artifact))
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = _ERRORS_ONLY
        spinning = "1" if options.spinning else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        if options.reference_kernels:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for plugin in loaded:
            devices = plugins.devices(ort, plugin.name)
            settings.add_provider_for_devices(devices, _as_text(plugin.options))
        # onnxruntime takes one of the two ways; behind a plugin the CPU stands by itself.
        providers = [] if loaded else [(p.name, _as_text(p.options)) for p in built_in]
        try:
            session = ort.InferenceSession(str(artifact), settings, providers=providers)
        except Exception as e:  # each of onnxruntime's errors is a class of its own
            raise EngineError(f"onnxruntime cannot open {artifact}: {e}") from e
        # Else a provider that fails in `run` is silently replaced by the CPU for good.
        session.disable_fallback()
        self._artifact = artifact
        self._providers: tuple[str, ...] = tuple(session.get_providers())
        require(asked, self._providers, where=str(artifact))
        self._inputs = tuple(_spec(node, artifact) for node in session.get_inputs())
        self._outputs = tuple(_spec(node, artifact) for node in session.get_outputs())
        self._names = [spec.name for spec in self._outputs]
        self._has_texts = any(spec.datatype == "BYTES" for spec in (*self._inputs, *self._outputs))
        self._session = session
        # What goes wrong in a run is raised; said twice, it would only confuse.
        self._quietly = ort.RunOptions()
        self._quietly.log_severity_level = _FATAL_ONLY

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def providers(self) -> tuple[str, ...]:
        return self._providers

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if self._session is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        # onnxruntime takes 0-d arrays, but refuses numpy scalars.
        feeds = {name: np.asarray(array) for name, array in inputs.items()}
        try:
            if self._has_texts:
                feeds = {name: _decoded(array) for name, array in feeds.items()}
            results = self._session.run(self._names, feeds, self._quietly)
        except Exception as e:  # each of onnxruntime's errors is a class of its own
            reason = misfit(self._inputs, inputs) or str(e).strip()
            raise EngineError(f"{self._artifact.name}: {reason}") from e
        if self._has_texts:
            results = [_encoded(array) for array in results]
        return dict(zip(self._names, results, strict=True))

    def close(self) -> None:
        self._session = None


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _library() -> Any:
    try:
        import onnxruntime  # costs a quarter of a second
    except ImportError as e:
        raise EngineNotInstalled(
            f"engine onnxruntime is not on this machine: {e}", hint="pip install onnxruntime"
        ) from e
    return onnxruntime


def _spec(node: Any, artifact: Path) -> TensorSpec:
    if node.type not in _DATATYPES:
        raise EngineError(f"{artifact}: {node.name} is a {node.type}, which cannot be served")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(name=node.name, datatype=_DATATYPES[node.type], shape=shape)


def _as_text(options: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    """Provider options the way onnxruntime reads them: booleans are 1 and 0."""
    return {
        name: str(int(value)) if isinstance(value, bool) else str(value)
        for name, value in options.items()
    }


def _decoded(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != object:
        return array
    texts = [item.decode() if isinstance(item, bytes) else item for item in array.reshape(-1)]
    return np.array(texts, dtype=object).reshape(array.shape)


def _encoded(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype != object:
        return array
    texts = [item.encode() if isinstance(item, str) else item for item in array.reshape(-1)]
    return np.array(texts, dtype=object).reshape(array.shape)


ENGINE = OnnxRuntime()
