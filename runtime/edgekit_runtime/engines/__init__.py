"""Engines open artefacts; a session is an open one. Each engine is one file named after it.

A build runs its artefacts through this contract too, so that what was measured is what serves.
Every engine passes the suite in `tests/runtime/engine_contract.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgekit.errors import EngineNotInstalled
from edgekit.manifest import TensorSpec
from edgekit.registry import Registry
from edgekit_runtime.engines.placed import Placed

Tensors = Mapping[str, NDArray[Any]]
Evidence = Literal["run", "simulated", "never run"]


class Session(Protocol):
    """An open model. Owned by one thread; `close` gives back what the engine holds."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def providers(self) -> tuple[str, ...]:
        """What the engine says it runs on, in order of preference."""
        ...

    @property
    def placement(self) -> Placed | None:
        """Where the model runs, as the engine says; `None` where it cannot tell."""
        ...

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Every output for these inputs.

        Args:
            inputs: one array per model input, in the datatype and shape of its spec.

        Raises:
            EngineError: the engine refused; the message names the model and the cause.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class Binds(Protocol):
    """A session that can also run on arrays that stay where they are from run to run."""

    def bind(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        """A run that reads these inputs and writes these outputs, without a copy.

        The session keeps neither: a bound run ends with whoever holds it, or with the session.

        Args:
            inputs: one contiguous array per model input, in the datatype and shape of its spec.
            outputs: one per model output, of the shape that it will have.

        Returns:
            the run, which raises `EngineError` where the engine refuses, or where an output has
            another shape; outputs then hold anything.

        Raises:
            EngineError: the arrays do not fit the model.
        """
        ...


@runtime_checkable
class Rests(Protocol):
    """A session that keeps scratch memory from run to run, and can give it back."""

    def rest(self) -> None:
        """Have the next run end by giving back what runs took, up to the model itself."""
        ...


class Engine(Protocol):
    """One library that runs artefacts."""

    @property
    def name(self) -> str: ...

    @property
    def evidence(self) -> Evidence:
        """What was seen of this adapter: on the hardware that it is for, in that hardware's
        emulation, or nothing."""
        ...

    @property
    def evidence_note(self) -> str:
        """What exactly was run, in one sentence."""
        ...

    def version(self) -> str:
        """The version of the library here, raising `EngineNotInstalled` where there is none."""
        ...

    def open(self, artifact: Path, *, options: Mapping[str, Any]) -> Session:
        """Open an artefact.

        Args:
            artifact: the file; it must stay where it is while the session is open.
            options: a variant's `options`; the engine refuses the ones that it does not know.

        Raises:
            EngineNotInstalled: the library is not on this machine.
            EngineError: the file or an option is not right.
        """
        ...


ENGINES: Registry[Engine] = Registry(
    "engine",
    group="edgekit.engines",
    builtin={
        "onnxruntime": "edgekit_runtime.engines.onnxruntime:ENGINE",
        "hailo": "edgekit_runtime.engines.hailo:ENGINE",
        "litert": "edgekit_runtime.engines.litert:ENGINE",
        "openvino": "edgekit_runtime.engines.openvino:ENGINE",
        "rknn": "edgekit_runtime.engines.rknn:ENGINE",
        "tflite-runtime": "edgekit_runtime.engines.litert:TFLITE_RUNTIME",
    },
)


def versions() -> dict[str, str]:
    """The engines that are on this machine, each with its version."""
    found = {}
    for name in ENGINES.names():
        with suppress(EngineNotInstalled):
            found[name] = ENGINES.get(name).version()
    return found
