"""Run one tool on one model: what it took, what it left, or why it left nothing.

Promise: a tool runs in a process group of its own with a time limit, alone; whatever it does, the
outcome is a value. Seconds and memory are those of the whole command, start-up included, as whoever
types it waits for them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

STDOUT = "stdout.txt"
_WATCH = Path(__file__).with_name("watch.py")
_KEPT_CHARACTERS = 300
_ERROR = re.compile(r"[\w.]*(Error|Exception|Fail)\w*\b")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended. `failure` is empty where it wrote what it should have written."""

    seconds: float
    cpu_seconds: float
    peak_memory_mb: int
    load_before: float
    failure: str = ""


def run(
    command: Sequence[str],
    *,
    folder: Path,
    variables: Mapping[str, str],
    limit_s: float,
    artefact: Path | None = None,
) -> Outcome:
    """Run `command` in `folder`, and expect it to write `artefact`.

    What it prints goes to `stdout.txt` and `stderr.txt` in the folder.
    """
    load = os.getloadavg()[0]
    watched = subprocess.run(
        [sys.executable, "-I", str(_WATCH), str(limit_s), STDOUT, "stderr.txt", *command],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        check=True,
    )
    took = json.loads(watched.stdout)
    failure = ""
    if took["late"]:
        failure = f"stopped after {limit_s:.0f} s"
    elif took["code"]:
        failure = last_words(folder) or f"exit code {took['code']}"
    elif artefact is not None and not artefact.is_file():
        failure = f"wrote no {artefact.name}"
    return Outcome(
        seconds=took["seconds"],
        cpu_seconds=took["cpu_seconds"],
        peak_memory_mb=took["peak_memory_mb"],
        load_before=round(load, 2),
        failure=failure,
    )


def last_words(folder: Path) -> str:
    """Why a command failed: its output from the last line that names an error, or the last line."""
    output = "\n".join(
        (folder / name).read_text("utf-8", "replace") for name in (STDOUT, "stderr.txt")
    )
    lines = [line.strip() for line in _COLOURS.sub("", output).splitlines() if line.strip()]
    named = [n for n, line in enumerate(lines) if _ERROR.match(line)]
    return " ".join(lines[named[-1] if named else -1 :])[:_KEPT_CHARACTERS]
