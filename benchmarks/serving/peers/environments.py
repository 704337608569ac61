"""Environments: one for each peer, made by uv from PyPI below a cache folder, versions pinned."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

PYTHON = "3.11"


def cache() -> Path:
    """Where environments stay: EDGEKIT_PEERS, else below the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("EDGEKIT_PEERS") or Path(home, "edgekit", "peers"))


def python(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment that has these packages; it is made where it is not there.

    The folder is named after what is in it, so that another pin makes another environment.
    """
    mark = hashlib.sha256("\n".join((PYTHON, *packages)).encode()).hexdigest()[:12]
    folder = cache() / f"{name}-{mark}"
    interpreter = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        subprocess.run(["uv", "venv", "-q", "--clear", "--python", PYTHON, folder], check=True)
        install = ["uv", "pip", "install", "-q", "--python", str(interpreter), *packages]
        subprocess.run(install, check=True)
        ready.touch()
    return interpreter


def versions(interpreter: Path) -> dict[str, str]:
    """What is installed there."""
    command = ["uv", "pip", "freeze", "-q", "--python", str(interpreter)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    pairs = (line.partition("==") for line in done.stdout.splitlines())
    return {name: version for name, _, version in pairs if version}
