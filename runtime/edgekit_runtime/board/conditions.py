"""Conditions: heat, clocks and throttling of a board, as Linux and its vendor's tools tell.

A latency means something only with the conditions that it was taken under. The readers only read,
below a root folder that is passed in; `reasons_void` is a pure rule over what they found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec

from edgekit.structs import Strict
from edgekit_runtime import sysfs

TOOL_TIMEOUT_S = 5.0
_TOOL_FOLDERS = ("usr/bin", "usr/sbin", "opt/vc/bin")


class Reading(Strict, frozen=True, kw_only=True):
    """The board at one moment. What a board does not tell is missing, never 0.

    Attributes:
        at_s: seconds since the benchmark began; 0 before it.
        temperatures_c: thermal zone to degrees Celsius.
        clocks_mhz: core to its clock; cores that share one are listed each.
        devices_mhz: clock of a GPU, an NPU or a memory controller; recorded, no rule looks at it,
            because most of them slow down between two runs.
        throttled: what slows the board down at this moment, in words.
        events: counters of throttling and over-current events since the board started.
        load: processes that wanted to run, over the last minute.
    """

    at_s: float
    temperatures_c: dict[str, float] = {}
    clocks_mhz: dict[str, float] = {}
    devices_mhz: dict[str, float] = {}
    throttled: tuple[str, ...] = ()
    events: dict[str, int] = {}
    load: float | None = None


class Conditions(Strict, frozen=True, kw_only=True):
    """The board before, during and after a benchmark.

    Attributes:
        power_mode: of `nvpmodel -q`, where that is there.
        governors: who sets the clocks, each once.
        max_clock_mhz: the highest clock that a core of the board can have.
        allowed_clock_mhz: the highest that its settings (a power mode, a cap) allow now.
    """

    before: Reading
    during: tuple[Reading, ...]
    after: Reading
    power_mode: str | None = None
    governors: tuple[str, ...] = ()
    max_clock_mhz: float | None = None
    allowed_clock_mhz: float | None = None


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


def reasons_void(found: Conditions, *, max_clock_drop: Share) -> tuple[str, ...]:
    """Why the figures of a run are not those of the board; empty where they are.

    Args:
        found: what was read around and during the run.
        max_clock_drop: share by which the clock of the fastest core may fall within the run.
    """
    everything = (found.before, *found.during, found.after)
    throttled = {
        what: reading.at_s for reading in reversed(everything) for what in reading.throttled
    }
    reasons = [
        f"the board was throttled: {what} (first seen at {at_s:.1f} s)"
        for what, at_s in sorted(throttled.items())
    ]
    for name, count in sorted(found.after.events.items()):
        before = found.before.events.get(name, count)
        if count > before:
            reasons.append(f"the board was throttled: {name} went from {before} to {count}")
    drop = clock_drop(found.during)
    if drop is not None and drop[0] > max_clock_drop:
        share, high, low = drop
        reasons.append(
            f"the clock fell by {share:.0%}, from {high:.0f} to {low:.0f} MHz;"
            f" at most {max_clock_drop:.0%} is allowed"
        )
    return tuple(reasons)


def clock_drop(during: Sequence[Reading]) -> tuple[float, float, float] | None:
    """Share by which the clock fell, and from what to what in MHz; None where clocks are not known.

    Of each moment the fastest core counts, because governors slow down the ones that do nothing.
    A run is cut into quarters, and the medians of the fastest quarter and of the slowest one after
    it are compared: a single sample between two clocks says nothing.
    """
    clocks = [max(reading.clocks_mhz.values()) for reading in during if reading.clocks_mhz]
    if not clocks:
        return None
    parts = min(4, len(clocks))
    edges = [len(clocks) * part // parts for part in range(parts + 1)]
    medians = [median(clocks[edges[i] : edges[i + 1]]) for i in range(parts)]
    worst = (0.0, medians[0], medians[0])
    for place, high in enumerate(medians):
        low = min(medians[place:])
        if high > 0 and 1 - low / high > worst[0]:
            worst = (1 - low / high, high, low)
    return worst


def read(root: Path = sysfs.ROOT, *, at_s: float, tools: bool) -> Reading:
    """The board now.

    Args:
        root: where its file systems are.
        at_s: seconds since the benchmark began.
        tools: whether vendors' programs may be started for what no file tells; that takes time
            away from what is measured.
    """
    flags = _pi_flags(root, tools=tools)
    since = {} if flags is None else sysfs.pi_since_start(flags)
    return Reading(
        at_s=at_s,
        temperatures_c=dict(sysfs.temperatures_c(root)),
        clocks_mhz=dict(sysfs.clocks_mhz(root)),
        devices_mhz=dict(sysfs.devices_mhz(root)),
        throttled=tuple(dict.fromkeys((*sysfs.pi_now(flags or 0), *sysfs.throttled(root)))),
        events={**since, **dict(sysfs.events(root))},
        load=_load(root),
    )


def around(
    before: Reading, during: Sequence[Reading], after: Reading, *, root: Path = sysfs.ROOT
) -> Conditions:
    """What was read, with the settings of the board that do not change in between."""
    return Conditions(
        before=before,
        during=tuple(during),
        after=after,
        power_mode=power_mode(_tool(root, "nvpmodel", "-q") or ""),
        governors=tuple(sorted(set(sysfs.governors(root)))),
        max_clock_mhz=max(
            (mhz for _, mhz in sysfs.clocks_mhz(root, "cpuinfo_max_freq")), default=None
        ),
        allowed_clock_mhz=max(
            (mhz for _, mhz in sysfs.clocks_mhz(root, "scaling_max_freq")), default=None
        ),
    )


def power_mode(text: str) -> str | None:
    """The mode in the output of `nvpmodel -q`, such as `NV Power Mode: MAXN` and its number."""
    found = re.search(r"^NV Power Mode:\s*(\S.*?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else None


def _pi_flags(root: Path, *, tools: bool) -> int | None:
    """A Raspberry Pi's `get_throttled`, by file or by its program; None of another board."""
    flags = sysfs.pi_flags(root)
    said = _tool(root, "vcgencmd", "get_throttled") if tools and flags is None else None
    found = re.search(r"throttled=0x([0-9a-fA-F]{1,8})", said or "")
    return int(found.group(1), 16) if found else flags


def _load(root: Path) -> float | None:
    words = (sysfs.text(root / "proc/loadavg") or "").split()
    return float(words[0]) if words and re.fullmatch(r"\d+\.\d+", words[0]) else None


def _tool(root: Path, name: str, argument: str) -> str | None:
    """What a vendor's program prints; None where it is not there, fails or hangs."""
    folders = os.pathsep.join(str(root / folder) for folder in _TOOL_FOLDERS)
    program = shutil.which(name, path=folders)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, argument],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
