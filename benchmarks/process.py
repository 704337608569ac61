"""What a process has used so far, from /proc, and how a benchmark says what it found."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Proportional set size of a process now: shared pages count by share."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def peak_rss_mb(pid: int) -> float:
    """Largest resident memory of a process so far."""
    return _field(Path(f"/proc/{pid}/status"), "VmHWM:")


def tell(figures: Mapping[str, Any], *, file: Path | None) -> None:
    """Print figures as a table and, where a file is named, write them there as JSON."""
    for name, value in figures.items():
        print(f"{name:<32} {round(value, 3) if isinstance(value, float) else value}")
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def _field(path: Path, name: str) -> float:
    for line in path.read_text("ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise LookupError(f"{path} has no {name}")
