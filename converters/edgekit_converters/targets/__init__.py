"""Targets make artefacts for engines: one file a technology.

A target says which engines of a profile it makes artefacts for, what the board is told to run them
with, and what can be known of them on this machine. What was not run on the machine it is for is
never called executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.registry import Registry
from edgekit_converters.passes import Style

Format = Literal["onnx", "tflite"]


class Target(Protocol):
    """How artefacts for one kind of engine are made and judged."""

    @property
    def format(self) -> Format:
        """The format of source that it takes."""
        ...

    @property
    def style(self) -> Style:
        """Whose rules quantised graphs follow."""
        ...

    def makes_for(self, engine: EngineSpec) -> bool:
        """Whether it makes artefacts for this engine of a profile."""
        ...

    def source_precision(self, engine: EngineSpec, artifact: Path) -> str:
        """What an artefact that no pass has changed is computed in."""
        ...

    def options(self, engine: EngineSpec) -> dict[str, Any]:
        """What the board opens the artefact with."""
        ...

    def options_here(self, profile: DeviceProfile, engine: EngineSpec) -> dict[str, Any]:
        """What this machine opens the artefact with, to check its arithmetic."""
        ...

    def evidence(self, profile: DeviceProfile, engine: EngineSpec) -> Evidence:
        """What a build on this machine proves about artefacts for this engine of the profile."""
        ...

    def finish(self, artifact: Path) -> Path:
        """Bring an artefact into the form that the engine loads; most are in it already.

        Raises `BuildError` where a tool is missing or refuses; the hint says what adds it.
        """
        ...

    def lint(self, artifact: Path, engine: EngineSpec) -> tuple[str, ...]:
        """What in the artefact the engine is known not to take; empty where nothing is."""
        ...


TARGETS: Registry[Target] = Registry(
    "target",
    group="edgekit.targets",
    builtin={
        "tensorrt": "edgekit_converters.targets.tensorrt:TARGET",
        "onnxruntime-cpu": "edgekit_converters.targets.onnxruntime_cpu:TARGET",
        "edgetpu": "edgekit_converters.targets.edgetpu:TARGET",
        "litert": "edgekit_converters.targets.litert:TARGET",
    },
)


def target_for(engine: EngineSpec) -> Target | None:
    """The target that makes artefacts for an engine of a profile."""
    for name in TARGETS.names():
        target = TARGETS.get(name)
        if target.makes_for(engine):
            return target
    return None
