"""onnxruntime: runs ONNX artefacts on the CPU and on every execution provider its build carries.

A provider that was asked for either runs the model or the session is refused: onnxruntime's own
habit of going on with the CPU would make a placement contract worthless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakSet

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit.manifest import Datatype, TensorSpec
from edgekit.profile import Provider
from edgekit.structs import Strict
from edgekit_runtime.engines import Evidence, Tensors, onnx_compile, onnx_placement, plugins
from edgekit_runtime.engines.batches import MAX_BATCH, can_batch
from edgekit_runtime.engines.compiling import Compilation
from edgekit_runtime.engines.library import installed, parsed
from edgekit_runtime.engines.onnx_placement import CPU
from edgekit_runtime.engines.placed import Placed, on_cpu
from edgekit_runtime.engines.tensors import misfit, zeros

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
    evidence: Evidence = "run"
    evidence_note = (
        "the CPU provider runs here and under Arm emulation; QNN in its x86 emulation of the HTP;"
        " TensorRT, CUDA and OpenVINO providers were never run"
    )

    def version(self) -> str:
        """Version of the library here, found without importing it."""
        versions = (installed(distribution) for distribution in DISTRIBUTIONS)
        # A build by a board's vendor may be installed without a distribution record.
        return next(filter(None, versions), None) or str(_library().__version__)

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> OnnxSession:
        """Open an ONNX file by its path, so that no second copy of its weights is held."""
        return OnnxSession(artifact, parse(options))

    def compilation(self, artifact: Path, *, options: Mapping[str, Any]) -> Compilation | None:
        """What a provider makes of the file on the device: engines, or a context model."""
        providers = tuple(provider.name for provider in parse(options).providers)
        return onnx_compile.compilation(
            artifact, options, providers=providers, open_once=_open_once
        )


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
    """An open ONNX model.

    Args:
        entries: settings of the session beyond what options say, as onnxruntime names them.
    """

    def __init__(
        self, artifact: Path, options: Options, entries: Mapping[str, str] | None = None
    ) -> None:
        ort = _library()
        asked = [provider.name for provider in options.providers]
        loaded = [p for p in options.providers if plugins.is_plugin(ort, p.name)]
        built_in = [p for p in options.providers if p not in loaded]
        require([p.name for p in built_in], ort.get_available_providers(), where=str(artifact))
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # A pattern is one more block of memory for each shape of inputs, and was never faster here.
        settings.enable_mem_pattern = False
        settings.log_severity_level = _ERRORS_ONLY
        spinning = "1" if options.spinning else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        for name, value in (entries or {}).items():
            settings.add_session_config_entry(name, value)
        if options.reference_kernels:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        for plugin in loaded:
            devices = plugins.devices(ort, plugin.name)
            settings.add_provider_for_devices(devices, _as_text(plugin.options))
        profile = None
        accelerated = any(name != CPU for name in asked)
        if accelerated and onnx_placement.can_record(ort):
            settings.add_session_config_entry(onnx_placement.RECORD, "1")
        elif accelerated:
            profile = onnx_placement.Profile(settings)
        # onnxruntime takes one of the two ways; behind a plugin the CPU stands by itself.
        providers = [] if loaded else [(p.name, _as_text(p.options)) for p in built_in]
        try:
            # Else a provider that fails is silently replaced by the CPU, here or in `run`.
            session = ort.InferenceSession(
                str(artifact), settings, providers=providers, enable_fallback=0
            )
        except Exception as e:  # each of onnxruntime's errors is a class of its own
            if profile is not None:
                profile.discard()
            raise EngineError(f"onnxruntime cannot open {artifact}: {e}") from e
        # Older versions heed this alone.
        session.disable_fallback()
        self._artifact = artifact
        self._providers: tuple[str, ...] = tuple(session.get_providers())
        require(asked, self._providers, where=str(artifact))
        self._inputs = tuple(_spec(node, artifact) for node in session.get_inputs())
        self._outputs = tuple(_spec(node, artifact) for node in session.get_outputs())
        self._names = [spec.name for spec in self._outputs]
        self._has_texts = any(spec.datatype == "BYTES" for spec in (*self._inputs, *self._outputs))
        self._placement: Placed | None = on_cpu()
        if profile is not None:
            self._placement = profile.placed(session, self._inputs)
        elif accelerated:
            self._placement = onnx_placement.recorded(session)
        self._session = session
        # What goes wrong in a run is raised; said twice, it would only confuse.
        self._quietly = _quietly(ort)
        self._resting = _quietly(ort)
        self._resting.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._bound: WeakSet[_Bound] = WeakSet()
        self._is_resting = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def providers(self) -> tuple[str, ...]:
        return self._providers

    @property
    def placement(self) -> Placed | None:
        return self._placement

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if self._session is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        # onnxruntime takes 0-d arrays, but refuses numpy scalars.
        feeds = {name: np.asarray(array) for name, array in inputs.items()}
        options = self._quietly
        if self._is_resting:
            options, self._is_resting = self._resting, False
        try:
            if self._has_texts:
                feeds = {name: _decoded(array) for name, array in feeds.items()}
            results = self._session.run(self._names, feeds, options)
        except Exception as e:  # each of onnxruntime's errors is a class of its own
            reason = misfit(self._inputs, inputs) or str(e).strip()
            raise EngineError(f"{self._artifact.name}: {reason}") from e
        if self._has_texts:
            results = [_encoded(array) for array in results]
        return dict(zip(self._names, results, strict=True))

    def rest(self) -> None:
        # Accelerators keep arenas of their own, and each names and frees them in its own way.
        self._is_resting = self._providers == (CPU,)

    def bind(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        if self._session is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        try:
            bound = _Bound(self._session, inputs, outputs, self._quietly, self._artifact)
        except Exception as e:  # each of onnxruntime's errors is a class of its own
            reason = misfit(self._inputs, inputs) or str(e).strip()
            raise EngineError(f"{self._artifact.name}: {reason}") from e
        self._bound.add(bound)
        return bound

    def close(self) -> None:
        self._session = None
        # Each would keep the model in memory.
        for bound in self._bound:
            bound.close()


class _Bound:
    """A run on arrays that stay where they are."""

    def __init__(
        self, session: Any, inputs: Tensors, outputs: Tensors, options: Any, artifact: Path
    ) -> None:
        binding = session.io_binding()
        for arrays, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._binding = binding
        self._session = session
        self._options = options
        self._artifact = artifact
        # The engine knows their addresses only.
        self._arrays = (inputs, outputs)

    def __call__(self) -> None:
        if self._session is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as e:  # each of onnxruntime's errors is a class of its own
            raise EngineError(f"{self._artifact.name}: {str(e).strip()}") from e

    def close(self) -> None:
        self._session = self._binding = None


def _open_once(artifact: Path, options: Mapping[str, Any], entries: Mapping[str, str]) -> None:
    """Open a file for what its providers make meanwhile.

    TensorRT makes engines of fixed shapes as it opens; others at a run, for the sizes that it has
    seen, so it is shown the smallest batch and the largest.
    """
    session = OnnxSession(artifact, parse(options), entries)
    session.run(zeros(session.inputs))
    if can_batch(session):
        session.run(zeros(session.inputs, rows=MAX_BATCH))
    session.close()


def _library() -> Any:
    try:
        import onnxruntime  # costs a quarter of a second
    except ImportError as e:
        raise EngineNotInstalled(
            f"engine onnxruntime is not on this machine: {e}", hint="pip install onnxruntime"
        ) from e
    return onnxruntime


def _quietly(ort: Any) -> Any:
    """Options of a run that only raises what goes wrong."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    # No captured graph: unsaid, 1.31 finds that out by an exception in each bound run (40 us).
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


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
