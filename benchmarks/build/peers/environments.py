"""Environments of the peers: made by uv below the cache, once for each set of pins.

Promise: an environment appears with a note of its size and of the seconds it took, or is made
again; two peers with the same pins share one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

_PYTHON = "3.11"
_NOTE = "made.json"


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a peer runs and what having it costs; seconds include the download."""

    python: Path
    size_mb: int
    install_s: float
    packages: int


def environment(cache: Path, name: str, requirements: Sequence[str]) -> Environment:
    """An environment with these packages and what they need, made if it is not there.

    Raises:
        RuntimeError: the packages could not be installed; the message holds what uv said.
    """
    pins = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    folder = cache / "environments" / f"{name}-{pins}"
    note = folder / _NOTE
    if not note.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        note.write_bytes(msgspec.json.encode(_make(folder, requirements)))
    return msgspec.convert(json.loads(note.read_bytes()), Environment, dec_hook=_path)


def _path(_: type, text: object) -> Path:
    return Path(str(text))


def _make(folder: Path, requirements: Sequence[str]) -> dict[str, str | float]:
    started = time.monotonic()
    python = folder / "bin" / "python"
    _uv("venv", "--quiet", "--python", _PYTHON, str(folder))
    # Without uv's cache, or the seconds would tell how often it was done before.
    _uv("pip", "install", "--quiet", "--no-cache", "--python", str(python), *requirements)
    took_s = time.monotonic() - started
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    packages = len(list(folder.glob("lib/python*/site-packages/*.dist-info")))
    return {
        "python": str(python),
        "size_mb": size // 10**6,
        "install_s": round(took_s, 1),
        "packages": packages,
    }


def _uv(*arguments: str) -> None:
    run = subprocess.run(["uv", *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"uv {arguments[0]} failed: {run.stderr.strip()[-800:]}")
