"""Environments: the locked homes of tool chains, and whether each is as its lock says.

An environment counts only with the file `ready` in it, which holds the SHA-256 of the lock that it
was made from and is written last (`installation.py`). Whatever ended an installation, nothing half
made is used, and a lock that has changed since asks for a new installation.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

from edgekit import storage
from edgekit.errors import BuildError, ToolChainMissing
from edgekit.structs import Strict
from edgekit_converters.toolchains import ToolChain, emulation, toolchain, uv

Status = Literal["ready", "missing", "half-installed", "wrong version", "python missing"]

READY = "ready"


class State(Strict, frozen=True, kw_only=True):
    """How a tool chain stands here.

    Attributes:
        detail: where it is, or what is wrong with it.
        command: what makes it ready; None where it is, or where no command does.
    """

    status: Status
    detail: str
    command: str | None = None


def home() -> Path:
    """Where environments lie: `EDGEKIT_TOOLCHAINS`, or a folder of the user's own data."""
    chosen = os.environ.get("EDGEKIT_TOOLCHAINS")
    return Path(chosen) if chosen else storage.data_home() / "toolchains"


def state(name: str) -> State:
    """How the tool chain called `name` stands here, raising `UsageError` for an unknown one."""
    chain = toolchain(name)
    if chain.python is None:
        return _state_of_program(chain)
    folder = home() / name
    if folder.is_dir():
        return _state_of(folder, chain)
    return _state_of_absent(chain, chain.python)


def python_of(name: str) -> Path:
    """The interpreter that drivers of a tool chain run in; for a program the present one.

    Raises:
        ToolChainMissing: it is not ready; the message says why, the hint what makes it so.
    """
    chain, found = toolchain(name), state(name)
    if found.status != "ready":
        raise ToolChainMissing(
            f"tool chain {name} ({chain.title}) is not ready: {found.detail}",
            hint=found.command or chain.note or None,
        )
    return python_in(home() / name) if chain.python else Path(sys.executable)


def lock_sha256(name: str) -> str:
    """Identity of what a tool chain consists of, in hexadecimal: of its lock, or of its program.

    Raises:
        ToolChainMissing: it is a program that is not on PATH.
    """
    chain = toolchain(name)
    if chain.python is not None:
        return sha256(chain.lock_file)
    found = state(name)
    if found.status != "ready":
        raise ToolChainMissing(found.detail, hint=chain.note)
    return sha256(Path(found.detail))


def python_in(folder: Path) -> Path:
    """The interpreter of the environment in `folder`."""
    return folder / "bin" / "python"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, raising `StorageError` where it cannot be read."""
    digest = hashlib.sha256()
    for chunk in storage.chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _state_of(folder: Path, chain: ToolChain) -> State:
    command = _install(chain)
    try:
        made_from = (folder / READY).read_text().strip()
    except OSError:
        return State(
            status="half-installed", detail=f"{folder} was never finished", command=command
        )
    if made_from != sha256(chain.lock_file):
        return State(
            status="wrong version",
            detail=f"{folder} holds other versions than this edgekit wants",
            command=command,
        )
    if not python_in(folder).exists():
        return State(
            status="python missing",
            detail=f"the Python that {folder} was made with is gone",
            command=command,
        )
    if chain.machine is not None and (lack := emulation.missing(chain)) is not None:
        return State(status="python missing", detail=lack[0], command=lack[1])
    return State(status="ready", detail=str(folder))


def _state_of_absent(chain: ToolChain, python: str) -> State:
    if chain.machine is not None:
        return _state_of_unemulated(chain)
    try:
        found = uv.find_python(python)
    except BuildError as e:
        return State(status="missing", detail=e.message, command=f"{e.hint} && {_install(chain)}")
    if found is None:
        return State(
            status="python missing",
            detail=f"it needs Python {python}, which is not on this machine",
            command=f"{uv.install_python(python)} && {_install(chain)}",
        )
    return State(status="missing", detail="it is not installed", command=_install(chain))


def _state_of_unemulated(chain: ToolChain) -> State:
    if (lack := emulation.missing(chain)) is not None:
        detail, command = lack
        return State(status="missing", detail=detail, command=f"{command} && {_install(chain)}")
    return State(status="missing", detail="it is not installed", command=_install(chain))


def _state_of_program(chain: ToolChain) -> State:
    assert chain.program is not None
    found = shutil.which(chain.program)
    if found is None:
        return State(status="missing", detail=f"{chain.program} is not on PATH")
    return State(status="ready", detail=found)


def _install(chain: ToolChain) -> str:
    return f"edgekit doctor --install {chain.name}"
