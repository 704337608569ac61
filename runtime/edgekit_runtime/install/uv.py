"""uv and pip, started as programs: wheels are resolved by the one and downloaded by the other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from edgekit.errors import LinkError, UsageError

_LIMIT_S = 1800.0
_MOST_CHARS = 1200


def program() -> str:
    """Where uv is: on PATH or beside this Python.

    Raises:
        UsageError: there is none.
    """
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if found is None:
        raise UsageError(
            "wheels for a board are fetched with uv, which is not here",
            hint="pip install uv; `bench --device` can also use --remote-python",
        )
    return found


def run(*arguments: str, doing: str, folder: Path) -> str:
    """Run uv in a folder, and give what it printed.

    Args:
        doing: what for, in messages.

    Raises:
        UsageError: there is no uv.
        LinkError: it failed; what is missing or cannot be reached is in the message.
    """
    command = [program(), *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise LinkError(f"{doing}: uv came to no end within {_LIMIT_S:g} s") from e
    if done.returncode != 0:
        raise LinkError(f"{doing}: {_one_line(done.stderr)}")
    return done.stdout


def pip(*arguments: str, doing: str, folder: Path) -> str:
    """Run pip as `run` does, in an environment that uv keeps for it."""
    return run("tool", "run", "--quiet", "pip", *arguments, doing=doing, folder=folder)


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"[^\x20-\x7e]+", " ", text).split())[:_MOST_CHARS]
