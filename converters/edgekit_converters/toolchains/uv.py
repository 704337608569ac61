"""uv makes the environments of tool chains: where it is, and which Python it is to take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from edgekit.errors import BuildError

_ANSWERS_WITHIN_S = 30.0


@cache
def command() -> tuple[str, ...]:
    """How uv is started here: from PATH, beside this Python, or as its module.

    Raises:
        BuildError: there is none that runs.
    """
    for candidate in _candidates():
        # A shim of a version manager is found, and may still have nothing behind it.
        if _output([*candidate, "--version"]) is not None:
            return candidate
    raise BuildError(
        "tool chains are installed with uv, which is not here",
        hint=f"{sys.executable} -m pip install uv",
    )


def version() -> str | None:
    """The version of uv here; None where there is none."""
    try:
        said = _output([*command(), "--version"])
    except BuildError:
        return None
    return said.split()[1] if said else None


@cache
def find_python(version: str) -> Path | None:
    """An interpreter of this version (`3.12`); None where the machine has none.

    Version managers hide theirs behind shims that uv cannot run, so they are looked for by path.

    Raises:
        BuildError: there is no uv, which knows of more places.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return Path(sys.executable)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for python in sorted(root.glob(f"versions/{version}.*/bin/python{version}"), reverse=True):
        if _output([str(python), "--version"]) is not None:
            return python
    found = _output(
        [*command(), "python", "find", "--quiet", "--no-project", "--no-python-downloads", version]
    )
    return Path(found) if found else None


def install_python(version: str) -> str:
    """The command that brings a Python of this version to where `find_python` finds it."""
    return f"{' '.join(command())} python install {version}"


def _candidates() -> Iterator[tuple[str, ...]]:
    if on_path := shutil.which("uv"):
        yield (on_path,)
    beside = Path(sys.executable).parent / "uv"
    if beside.is_file():
        yield (str(beside),)
    if find_spec("uv") is not None:
        yield (sys.executable, "-m", "uv")


def _output(command: Sequence[str]) -> str | None:
    """What a program says, stripped; None where it does not run or ends with an error."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_ANSWERS_WITHIN_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
