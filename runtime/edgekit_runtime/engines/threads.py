"""Threads within one operator, where a variant does not say how many.

Threads of one operator wait for each other, so a slow core among them sets the pace: only the fast
cores of a big.LITTLE board count, and of two hardware threads of one core only one. Where all cores
are alike, one is left to sockets and to the rest of the board. Engines never wait busily: spinning
doubles the CPU time of a small model for nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.structs import Strict

MOST = 4
"""More threads gain little on models of a board's size, and cost the other models their cores."""

# A core at least this fast, of the fastest one, sets no other pace.
_AS_FAST = 0.8
_TAKING = frozenset({"onnxruntime", "litert", "tflite-runtime", "openvino"})


class Cores(Strict, frozen=True, kw_only=True):
    """The cores that this process may use, hardware threads of one counted once.

    Attributes:
        fast: as fast as the fastest, or nearly.
        slow: the others.
    """

    fast: int
    slow: int = 0


def with_defaults(
    options: Mapping[str, Any], engine: str, *, models: int, here: Cores | None = None
) -> dict[str, Any]:
    """A variant's options, with threads where the engine takes them and the variant says none.

    Args:
        models: how many share the cores.
        here: the cores; those of this machine by default.
    """
    if engine not in _TAKING or "threads" in options:
        return dict(options)
    return {**options, "threads": default_threads(here or cores(), models=models)}


def default_threads(here: Cores, *, models: int) -> int:
    """How many threads one operator gets."""
    left = here.fast if here.slow else here.fast - 1
    return max(1, min(left // max(models, 1), MOST))


def cores(*, root: Path = Path("/"), allowed: Sequence[int] | None = None) -> Cores:
    """The cores of this machine, by what Linux tells of their speed.

    Args:
        root: where `/sys` is.
        allowed: numbers of the CPUs that may be used; those of this process by default.
    """
    usable = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    speeds: dict[str, float] = {}
    for number in usable:
        cpu = root / f"sys/devices/system/cpu/cpu{number}"
        siblings = _text(cpu / "topology/thread_siblings_list") or str(number)
        speeds[siblings] = max(speeds.get(siblings, 0.0), _speed(cpu))
    if not speeds:
        return Cores(fast=1)
    limit = max(speeds.values()) * _AS_FAST
    fast = sum(speed >= limit for speed in speeds.values())
    return Cores(fast=fast, slow=len(speeds) - fast)


def _speed(cpu: Path) -> float:
    """Capacity as the scheduler has it, else the highest clock; 0 where neither is told."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        text = _text(cpu / name)
        if text.isdigit():
            return float(text)
    return 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
