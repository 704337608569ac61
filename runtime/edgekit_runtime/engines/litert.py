"""LiteRT, and tflite-runtime before it: run `.tflite` artefacts on the CPU and through delegates.

Inputs and outputs go by their tensor names, unchanged: every file has them, tools show them, and a
signature, which a file may lack or hold several of, is not needed to find them. A file that was
converted from another format keeps that model's interface by options: its names, layout and
datatype (`ports`). Axes that the file declares dynamic may be resized from call to call; all others
are fixed.

tflite-runtime is what boards have whose vendors build their delegates for it. It answers quantised
files of newer kinds wrongly without a word (a build runs what ships in it), and needs NumPy 1.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit.manifest import TensorSpec
from edgekit.profile import Provider
from edgekit.structs import Strict
from edgekit_runtime.engines import Evidence, Tensors
from edgekit_runtime.engines.library import not_installed, parsed, version_of
from edgekit_runtime.engines.placed import Placed, on_cpu
from edgekit_runtime.engines.ports import Port, PortSpec, Tensor, placed, plain
from edgekit_runtime.engines.tensors import DATATYPES, misfit
from edgekit_runtime.engines.tflite_placement import placed_by_delegates

# What a shared library must have to be a delegate.
_ENTRY = "tflite_plugin_create_delegate"


class Options(Strict, frozen=True, kw_only=True):
    """What a variant's `options` may say.

    Attributes:
        threads: threads within one operator.
        inputs, outputs: the interface of the model that the file was made from, each of the file's
            inputs or outputs once; empty for the file's own.
        delegates: shared libraries that take operators, in order of preference, with their options;
            what they leave runs on the CPU.
        reference_kernels: the library's plain kernels instead of XNNPACK's and its optimised ones:
            slow, and a second opinion on the arithmetic.
    """

    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    inputs: tuple[PortSpec, ...] = ()
    outputs: tuple[PortSpec, ...] = ()
    delegates: tuple[Provider, ...] = ()
    reference_kernels: bool = False


class LiteRt:
    """The engine, on one of the two libraries.

    Args:
        name: the engine's.
        distribution: what installs the library.
        module: where its `Interpreter` is.
        evidence_note: what of it was run.
    """

    evidence: Evidence = "run"

    def __init__(self, name: str, *, distribution: str, module: str, evidence_note: str) -> None:
        self.name = name
        self.evidence_note = evidence_note
        self._distribution = distribution
        self._module = module

    def version(self) -> str:
        """Version of the library here, found without importing it."""
        return version_of(self._distribution, missing=self._not_installed())

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> LiteRtSession:
        """Open a `.tflite` file by its path; the library maps it."""
        given = parsed(options, Options, engine=self.name)
        try:
            # It costs as much to import as onnxruntime.
            library = import_module(self._module)
        except ImportError as e:
            raise self._not_installed() from e
        return LiteRtSession(artifact, given, library=library, engine=self.name)

    def _not_installed(self) -> EngineNotInstalled:
        return not_installed(self.name, hint=f"pip install {self._distribution}")


class LiteRtSession:
    """An open `.tflite` model.

    Args:
        library: the module of one of the two libraries.
        engine: what messages call it.
    """

    def __init__(self, artifact: Path, options: Options, *, library: Any, engine: str) -> None:
        if not artifact.is_file():
            raise EngineError(f"{engine} cannot open {artifact}: there is no such file")
        delegates = [_delegate(delegate, library) for delegate in options.delegates]
        kinds = library.OpResolverType
        try:
            interpreter = library.Interpreter(
                model_path=str(artifact),
                num_threads=options.threads,
                experimental_delegates=delegates,
                experimental_op_resolver_type=kinds.BUILTIN_REF
                if options.reference_kernels
                else kinds.AUTO,
            )
            self._placement = placed_by_delegates(interpreter) if delegates else on_cpu()
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as e:
            raise EngineError(f"{engine} cannot open {artifact}: {e}") from e
        self._artifact = artifact
        self._delegates = tuple(delegate.name for delegate in options.delegates)
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self._in = _ports(inputs, options.inputs, what="input", artifact=artifact)
        self._out = _ports(outputs, options.outputs, what="output", artifact=artifact)
        self._inputs = tuple(port.spec for port in self._in)
        self._outputs = tuple(port.spec for port in self._out)
        self._numbers = {detail["name"]: detail["index"] for detail in (*inputs, *outputs)}
        self._input_index = {detail["name"]: detail["index"] for detail in inputs}
        self._output_index = {detail["name"]: detail["index"] for detail in outputs}
        self._shapes = {detail["name"]: tuple(map(int, detail["shape"])) for detail in inputs}
        self._interpreter = interpreter

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """How the file's inputs and outputs show the model's."""
        return self._in, self._out

    @property
    def numbers(self) -> dict[str, int]:
        """The number in the file of each input and output, by its tensor's name."""
        return dict(self._numbers)

    @property
    def providers(self) -> tuple[str, ...]:
        return (*self._delegates, "CPU")

    @property
    def placement(self) -> Placed | None:
        return self._placement

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        interpreter = self._interpreter
        if interpreter is None:
            raise EngineError(f"{self._artifact}: the session is closed")
        # The library itself takes any shape of the right size in bytes.
        if (reason := misfit(self._inputs, inputs)) is not None:
            raise EngineError(f"{self._artifact.name}: {reason}")
        arrays = {
            port.tensor.spec.name: port.to_file(np.asarray(inputs[port.spec.name]))
            for port in self._in
        }
        try:
            self._resize(arrays)
            for name, array in arrays.items():
                interpreter.set_tensor(self._input_index[name], array)
            interpreter.invoke()
            return {
                port.spec.name: port.to_model(
                    np.asarray(interpreter.get_tensor(self._output_index[port.tensor.spec.name]))
                )
                for port in self._out
            }
        except (ValueError, RuntimeError) as e:
            raise EngineError(f"{self._artifact.name}: {e}") from e

    def close(self) -> None:
        self._interpreter = None

    def _resize(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        wanted = {name: array.shape for name, array in arrays.items()}
        if wanted == self._shapes:
            return
        # Should the new shapes be refused half-way, the next call must set all of them again.
        self._shapes = {}
        for name, shape in wanted.items():
            self._interpreter.resize_tensor_input(self._input_index[name], shape)
        self._interpreter.allocate_tensors()
        self._shapes = wanted


def _ports(
    details: list[dict[str, Any]], asked: tuple[PortSpec, ...], *, what: str, artifact: Path
) -> tuple[Port, ...]:
    names = Counter(detail["name"] for detail in details)
    for name, count in names.items():
        if count > 1:
            raise EngineError(f"{artifact}: {count} tensors are called {name!r}")
    tensors = [_tensor(detail, artifact) for detail in details]
    if not asked:
        return plain(tensors)
    by_name = {tensor.spec.name: tensor for tensor in tensors}
    return placed(asked, by_name, what=what, where=str(artifact))


def _tensor(detail: dict[str, Any], artifact: Path) -> Tensor:
    scale, zero_point = detail["quantization"]
    return Tensor(_spec(detail, artifact), scale=float(scale), zero_point=int(zero_point))


def _spec(detail: dict[str, Any], artifact: Path) -> TensorSpec:
    datatype = DATATYPES.get(np.dtype(detail["dtype"]))
    if datatype is None or datatype == "BYTES":
        raise EngineError(f"{artifact}: {detail['name']} is a {detail['dtype']}, not served")
    signature = detail["shape_signature"]
    shape = signature if len(signature) else detail["shape"]
    return TensorSpec(name=detail["name"], datatype=datatype, shape=tuple(map(int, shape)))


def _delegate(delegate: Provider, library: Any) -> Any:
    try:
        # The library's own loader leaves an object behind that fails once more when it goes.
        if not hasattr(ctypes.CDLL(delegate.name), _ENTRY):
            raise ValueError(f"it has no {_ENTRY}")
        return library.load_delegate(delegate.name, dict(delegate.options))
    except (OSError, ValueError) as e:
        raise EngineError(
            f"delegate {delegate.name} cannot be loaded: {e}",
            hint="install the library of the accelerator's vendor, or serve another variant",
        ) from e


ENGINE = LiteRt(
    "litert",
    distribution="ai-edge-litert",
    module="ai_edge_litert.interpreter",
    evidence_note="runs on x86 CPUs and under Arm emulation here, and through an external delegate"
    " of the tests; delegates of Edge TPU and Ethos-U were never run",
)
TFLITE_RUNTIME = LiteRt(
    "tflite-runtime",
    distribution="tflite-runtime",
    module="tflite_runtime.interpreter",
    evidence_note="runs on x86 CPUs here, and through an external delegate of the tests; the"
    " delegate of the Edge TPU was never run",
)
