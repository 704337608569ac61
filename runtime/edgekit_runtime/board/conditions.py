"""Conditions: heat, clocks and throttling of a board, as Linux and its vendor's tools tell.

A latency means something only with the conditions that it was taken under. The readers only read,
below a root folder that is passed in; `reasons_void` is a pure rule over what they found.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import msgspec

from edgekit.structs import Strict

ROOT = Path("/")
TOOL_TIMEOUT_S = 5.0
_TOOL_FOLDERS = ("usr/bin", "usr/sbin", "opt/vc/bin")
# Cooling devices that slow the chip down; the others turn a fan.
_SLOWING = re.compile(r"cpufreq|devfreq|processor|gpu|throttle", re.IGNORECASE)
# Bits of the Raspberry Pi's get_throttled; the same 16 places up: it has happened since the start.
_PI_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
_PI_SINCE_START = 16


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


def read(root: Path = ROOT, *, at_s: float, tools: bool) -> Reading:
    """The board now.

    Args:
        root: where its file systems are.
        at_s: seconds since the benchmark began.
        tools: whether vendors' programs may be started for what no file tells; that takes time
            away from what is measured.
    """
    flags = _pi_flags(root, tools=tools)
    return Reading(
        at_s=at_s,
        temperatures_c=dict(_temperatures(root)),
        clocks_mhz=dict(_clocks(root, "scaling_cur_freq")),
        devices_mhz=dict(_devices(root)),
        throttled=(*pi_now(flags or 0), *_cooling(root)),
        events={**({} if flags is None else pi_since_start(flags)), **dict(_events(root))},
        load=_load(root),
    )


def around(
    before: Reading, during: Sequence[Reading], after: Reading, *, root: Path = ROOT
) -> Conditions:
    """What was read, with the settings of the board that do not change in between."""
    return Conditions(
        before=before,
        during=tuple(during),
        after=after,
        power_mode=power_mode(_tool(root, "nvpmodel", "-q") or ""),
        governors=tuple(sorted(set(_governors(root)))),
        max_clock_mhz=max((mhz for _, mhz in _clocks(root, "cpuinfo_max_freq")), default=None),
        allowed_clock_mhz=max((mhz for _, mhz in _clocks(root, "scaling_max_freq")), default=None),
    )


def pi_now(flags: int) -> tuple[str, ...]:
    """What slows a Raspberry Pi down now, from its `get_throttled`."""
    return tuple(name for bit, name in _PI_BITS.items() if flags >> bit & 1)


def pi_since_start(flags: int) -> dict[str, int]:
    """Whether each of these has happened since the Raspberry Pi started, as 0 or 1."""
    return {
        f"{name} since start": flags >> bit + _PI_SINCE_START & 1 for bit, name in _PI_BITS.items()
    }


def power_mode(text: str) -> str | None:
    """The mode in the output of `nvpmodel -q`, such as `NV Power Mode: MAXN` and its number."""
    found = re.search(r"^NV Power Mode:\s*(\S.*?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else None


def _pi_flags(root: Path, *, tools: bool) -> int | None:
    """A Raspberry Pi's `get_throttled`; None of another board, and where it is not told."""
    for path in sorted(root.glob("sys/devices/platform/*/*firmware*/get_throttled")):
        text = (_text(path) or "").strip()
        if re.fullmatch(r"[0-9a-fA-F]{1,8}", text):
            return int(text, 16)
    said = _tool(root, "vcgencmd", "get_throttled") if tools else None
    found = re.search(r"throttled=0x([0-9a-fA-F]{1,8})", said or "")
    return int(found.group(1), 16) if found else None


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        milli = _number(zone / "temp")
        if milli is not None:
            kind = (_text(zone / "type") or "").strip()
            yield f"{zone.name.removeprefix('thermal_')} {kind}".strip(), milli / 1000


def _clocks(root: Path, file: str) -> Iterator[tuple[str, float]]:
    for core in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*")):
        khz = _number(core / "cpufreq" / file)
        if khz is not None:
            yield core.name, khz / 1000


def _devices(root: Path) -> Iterator[tuple[str, float]]:
    for device in sorted(root.glob("sys/class/devfreq/*")):
        hertz = _number(device / "cur_freq")
        if hertz is not None:
            yield device.name, hertz / 1e6


def _governors(root: Path) -> Iterator[str]:
    for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"):
        yield (_text(path) or "").strip() or "unknown"


def _cooling(root: Path) -> Iterator[str]:
    """Cooling devices that hold a clock down now."""
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind = (_text(device / "type") or "").strip()
        state = _number(device / "cur_state")
        if state is not None and state > 0 and _SLOWING.search(kind):
            yield f"cooling by {kind} at step {state}"


def _events(root: Path) -> Iterator[tuple[str, int]]:
    """Counters of x86 cores, and of over-current events on a Jetson."""
    cores = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    for path in sorted(root.glob(cores)):
        count = _number(path)
        if count is not None:
            yield f"{path.parent.parent.name} {path.name}", count
    for path in sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")):
        count = _number(path)
        if count is not None:
            yield f"{path.parent.name} {path.name}", count


def _load(root: Path) -> float | None:
    words = (_text(root / "proc/loadavg") or "").split()
    return float(words[0]) if words and re.fullmatch(r"\d+\.\d+", words[0]) else None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def _text(path: Path) -> str | None:
    """A file of the kernel; a sensor that is switched off refuses to be read."""
    try:
        return path.read_text("ascii", errors="replace")
    except OSError:
        return None


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
