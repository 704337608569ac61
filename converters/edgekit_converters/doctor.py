"""Doctor: what this machine can build, run and prove for each board, and what would add more.

The facts come from where builds take them: the targets, their tool chains and the engines that are
installed. For each engine of a profile one rule says what a build here would come to now, and names
the command that takes it further.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from edgekit.errors import EngineNotInstalled
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.structs import Strict
from edgekit_converters import pinned, report
from edgekit_converters.targets import Format, Target, target_for
from edgekit_converters.toolchains import TOOLCHAINS, ToolChain, environments, uv
from edgekit_converters.toolchains.environments import State, Status
from edgekit_runtime.engines import ENGINES

Reach = Evidence | Literal["nothing"]

# The engine here that runs what is made for an engine of a board. Artefacts for others are run in
# their tool chain where that can, or not at all.
_STAND_INS = {
    "onnxruntime": "onnxruntime",
    "litert": "litert",
    "tflite-runtime": "litert",
    "tflite-micro": "litert",
}


class Machine(Strict, frozen=True, kw_only=True):
    """This machine, as far as builds care.

    Attributes:
        cores: that this process may use.
        disk_free_mb: where tool chains are installed.
        uv: its version; None where there is none.
    """

    description: str
    cores: int
    memory_available_mb: int
    disk_free_mb: int
    toolchains: str
    python: str
    libc: str
    uv: str | None


class EngineHere(Strict, frozen=True, kw_only=True):
    """An engine that edgekit knows.

    Attributes:
        version: None where it is not on this machine.
        providers: what it can run on here, where it tells.
        command: what adds it; None where it is here.
    """

    name: str
    version: str | None
    providers: tuple[str, ...] = ()
    command: str | None = None


class ChainHere(Strict, frozen=True, kw_only=True):
    """A tool chain and how it stands; `command` as in `State`, or how to get a program."""

    name: str
    title: str
    status: Status
    detail: str
    size_mb: int
    command: str | None


class Line(Strict, frozen=True, kw_only=True):
    """What a build here comes to for one engine of a board.

    Attributes:
        target: what makes artefacts for it; None where nothing does.
        builds_from: formats of source that artefacts can be made from now.
        reach: the best evidence that a build here gives now; `linted` is all there is where
            `builds_from` is empty, and `nothing` where no target exists.
        pinned: the tool chain that runs artefacts once more as the board does: in its version of
            the engine, or by its instructions.
        missing: tool chains that would add something.
        reason: why `reach` is no better than it could be; empty where it is.
        command: what adds more; None where nothing does that can be typed here.
    """

    profile: str
    engine: str
    version: str
    accelerator: str
    target: str | None
    builds_from: tuple[Format, ...]
    reach: Reach
    toolchains: tuple[str, ...] = ()
    pinned: str | None = None
    missing: tuple[str, ...] = ()
    reason: str = ""
    command: str | None = None


class Checkup(Strict, frozen=True, kw_only=True):
    """All that the doctor says.

    Attributes:
        command: what installs every tool chain that some line misses and uv can install.
    """

    machine: Machine
    engines: tuple[EngineHere, ...]
    toolchains: tuple[ChainHere, ...]
    lines: tuple[Line, ...]
    command: str | None


def examine(profiles: Sequence[DeviceProfile]) -> Checkup:
    """What this machine can do for these boards; installs and compiles nothing."""
    engines = tuple(_engine(name) for name in ENGINES.names())
    states = {name: environments.state(name) for name in TOOLCHAINS}
    lines = tuple(
        judge(profile, engine, target=target_for(engine), states=states, engines=engines)
        for profile in profiles
        for engine in profile.engines
    )
    missing = sorted({name for line in lines for name in line.missing})
    return Checkup(
        machine=_machine(),
        engines=engines,
        toolchains=tuple(_chain(TOOLCHAINS[name], found) for name, found in states.items()),
        lines=lines,
        command=install_command(missing),
    )


def judge(
    profile: DeviceProfile,
    engine: EngineSpec,
    *,
    target: Target | None,
    states: Mapping[str, State],
    engines: Sequence[EngineHere],
) -> Line:
    """What a build here comes to for one engine of a board.

    Args:
        states: how every known tool chain stands.
        engines: every known engine, here or not.
    """
    line = Line(
        profile=profile.name,
        engine=engine.name,
        version=engine.version,
        accelerator=engine.accelerator,
        target=target.name if target else None,
        builds_from=(),
        reach="nothing",
        reason="nothing makes artefacts for it",
    )
    if target is None:
        return line
    unready = tuple(name for name in target.toolchains if states[name].status != "ready")
    chain = pinned.environment_for(engine, profile=profile)
    pin = chain if chain in states else None
    missing = unready + ((pin,) if pin and states[pin].status != "ready" else ())
    runner = next((e for e in engines if e.name == _STAND_INS.get(engine.name)), None)
    absent = runner if runner and runner.version is None else None
    builds_from = () if absent else _formats(target, unready=unready)
    proof = target.evidence(profile, engine)
    return Line(
        profile=profile.name,
        engine=engine.name,
        version=engine.version,
        accelerator=engine.accelerator,
        target=target.name,
        builds_from=builds_from,
        reach=proof if builds_from else "linted",
        toolchains=target.toolchains,
        pinned=pin,
        missing=missing,
        reason=_reason(absent, unready=unready, pin=pin if pin in missing else None, states=states),
        command=absent.command if absent else install_command(missing),
    )


def install_command(missing: Sequence[str]) -> str | None:
    """What installs those of these tool chains that uv can install; None for none of them."""
    options = [f"--install {name}" for name in missing if TOOLCHAINS[name].python is not None]
    return " ".join(["edgekit doctor", *options]) if options else None


def _formats(target: Target, *, unready: Sequence[str]) -> tuple[Format, ...]:
    """Formats of source that a target takes with the tool chains that are ready."""
    found: list[Format] = []
    if not unready and (target.format == "onnx" or target.toolchains):
        found.append("onnx")
    if target.format == "tflite" and all(TOOLCHAINS[name].onnx_only for name in unready):
        found.append("tflite")
    return tuple(found)


def _reason(
    absent: EngineHere | None,
    *,
    unready: Sequence[str],
    pin: str | None,
    states: Mapping[str, State],
) -> str:
    if absent:
        return f"engine {absent.name} is not on this machine"
    parts = [f"tool chain {name}: {states[name].detail}" for name in unready]
    if pin:
        parts.append(f"not run as on the board: {pin} is not ready")
    return "; ".join(parts)


def _machine() -> Machine:
    folder = environments.home()
    return Machine(
        description=report.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_available_mb=report.available_bytes() >> 20,
        disk_free_mb=shutil.disk_usage(_existing(folder)).free >> 20,
        toolchains=str(folder),
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()).strip() or sys.platform,
        uv=uv.version(),
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )


def _engine(name: str) -> EngineHere:
    try:
        version = ENGINES.get(name).version()
    except EngineNotInstalled as e:
        return EngineHere(name=name, version=None, command=e.hint)
    return EngineHere(name=name, version=version, providers=_providers(name))


def _providers(name: str) -> tuple[str, ...]:
    if name != "onnxruntime":
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _chain(chain: ToolChain, found: State) -> ChainHere:
    ready = found.status == "ready"
    return ChainHere(
        name=chain.name,
        title=chain.title,
        status=found.status,
        detail=found.detail,
        size_mb=chain.size_mb,
        command=None if ready else found.command or chain.note or None,
    )
