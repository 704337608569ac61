"""Engines open artefacts; a session is an open one. Each engine is one file named after it.

A build runs its artefacts through this contract too, so that what was measured is what serves.
Every engine passes the suite in `tests/runtime/engine_contract.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgekit.errors import EngineNotInstalled
from edgekit.manifest import TensorSpec
from edgekit.registry import Registry

Tensors = Mapping[str, NDArray[Any]]


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

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Every output for these inputs.

        Args:
            inputs: one array per model input, in the datatype and shape of its spec.

        Raises:
            EngineError: the engine refused; the message names the model and the cause.
        """
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """One library that runs artefacts."""

    @property
    def name(self) -> str: ...

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
