"""Compiling: what an engine makes of an artefact on the device itself, before it can run it.

Making it takes seconds to many minutes, and it holds for one artefact, engine, driver and device.
An engine says what it makes, for whom, and how it opens the result; when, where and how long is the
business of `edgekit_runtime.compiled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Usable(NamedTuple):
    """What is given to `Engine.open`.

    Attributes:
        entry: the folder of what was compiled; None where nothing was.
    """

    artifact: Path
    options: dict[str, Any]
    entry: Path | None = None


class Compilation(Protocol):
    """How one artefact is compiled with one variant's options."""

    @property
    def holds_for(self) -> Mapping[str, str]:
        """Devices, drivers and libraries beside the engine's own that the result depends on."""
        ...

    def compile(self, folder: Path) -> None:
        """Leave what is made in `folder`. Runs in a process of its own.

        Raises:
            EngineError: the engine refused.
        """
        ...

    def usable(self, folder: Path) -> Usable:
        """What to open, once `folder` holds what `compile` left."""
        ...


@runtime_checkable
class Compiles(Protocol):
    """An engine that makes something of artefacts on the device."""

    def compilation(self, artifact: Path, *, options: Mapping[str, Any]) -> Compilation | None:
        """What is made of this artefact; None where it runs as it is.

        Raises:
            EngineNotInstalled: the library is not on this machine.
            EngineError: an option is not right.
        """
        ...
