"""Sysfs: what Linux tells of a board's heat, clocks, power and throttling, below a root folder.

Readers only read, start no program and never raise: a sensor that is not there, is switched off or
may not be read is left out. Where each file is documented stands in docs/sensors.md; what boards of
each kind have of them is in tests/runtime/trees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")

# Sensors within an x86 processor; other boards tell the same as thermal zones.
_X86_HEAT = frozenset({"coretemp", "k10temp", "zenpower"})
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
_PI_FLAGS = "sys/devices/platform/*/*firmware*/get_throttled"

Named = Iterator[tuple[str, float]]


def temperatures_c(root: Path) -> Named:
    """Thermal zones, and cores of an x86 processor, in degrees Celsius."""
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        milli = number(zone / "temp")
        if milli is not None:
            yield (
                f"{zone.name.removeprefix('thermal_')} {_word(zone / 'type')}".strip(),
                milli / 1e3,
            )
    for chip, name in _hwmon(root):
        for path in sorted(chip.glob("temp*_input")) if name in _X86_HEAT else ():
            milli = number(path)
            if milli is not None:
                label = _word(chip / path.name.replace("_input", "_label"))
                yield f"{name} {label or path.name.removesuffix('_input')}", milli / 1e3


def clocks_mhz(root: Path, file: str = "scaling_cur_freq") -> Named:
    """Clock of each core; `file` is the one below `cpufreq` that is read."""
    for core in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*")):
        khz = number(core / "cpufreq" / file)
        if khz is not None:
            yield core.name, khz / 1000


def devices_mhz(root: Path) -> Named:
    """Clock of each GPU, NPU or memory controller that Linux scales."""
    for device in sorted(root.glob("sys/class/devfreq/*")):
        hertz = number(device / "cur_freq")
        if hertz is not None:
            yield device.name, hertz / 1e6


def device_loads(root: Path) -> Named:
    """How busy such a device is, 0 to 1, where its driver tells.

    Rockchip's kernels give `percent@hertz`, a Jetson thousandths.
    """
    for device in sorted(root.glob("sys/class/devfreq/*")):
        percent = re.match(r"(\d{1,3})@\d+", _word(device / "load"))
        thousandths = number(device / "device" / "load")
        if percent is not None:
            yield device.name, min(1.0, int(percent[1]) / 100)
        elif thousandths is not None:
            yield device.name, min(1.0, thousandths / 1000)


def rails_w(root: Path) -> Named:
    """Power on each rail that is measured, in watts: INA3221, and chips that tell power itself."""
    for chip, name in _hwmon(root):
        for path in sorted(chip.glob("in[123]_input")) if name == "ina3221" else ():
            channel = path.name[2]
            millivolts, milliamperes = number(path), number(chip / f"curr{channel}_input")
            label = _word(chip / f"in{channel}_label")
            # A channel that leads nowhere is labelled so, by NVIDIA's boards.
            if millivolts is not None and milliamperes is not None and label != "NC":
                yield label or f"{chip.name} in{channel}", millivolts * milliamperes / 1e6
        for path in sorted(chip.glob("power*_input")):
            microwatts = number(path)
            if microwatts is not None:
                label = _word(chip / path.name.replace("_input", "_label"))
                yield label or f"{chip.name} {name}".strip(), microwatts / 1e6


def energies_j(root: Path) -> Named:
    """Energy counters of an x86 processor (RAPL) in joules, where they may be read; they wrap."""
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        microjoules = number(zone / "energy_uj")
        if microjoules is not None:
            yield f"{zone.name.removeprefix('intel-')} {_word(zone / 'name')}", microjoules / 1e6


def governors(root: Path) -> Iterator[str]:
    """Who sets the clock of each core."""
    for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"):
        yield _word(path) or "unknown"


def throttled(root: Path) -> Iterator[str]:
    """What slows the board down, or starves it, at this moment, in words."""
    told = pi_now(pi_flags(root) or 0)
    yield from told
    for chip, name in _hwmon(root):
        if name == "rpi_volt" and number(chip / "in0_lcrit_alarm") and _PI_BITS[0] not in told:
            yield _PI_BITS[0]
        for path in sorted(chip.glob("curr*_crit_alarm")):
            if number(path):
                channel = path.name.removeprefix("curr").removesuffix("_crit_alarm")
                yield f"over-current on {_word(chip / f'in{channel}_label') or path.name}"
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind, state = _word(device / "type"), number(device / "cur_state")
        if state is not None and state > 0 and _SLOWING.search(kind):
            yield f"cooling by {kind} at step {state}"


def events(root: Path) -> Iterator[tuple[str, int]]:
    """Counters of throttled x86 cores, and of over-current events on a Jetson, since the start."""
    cores = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    for path in sorted(root.glob(cores)):
        count = number(path)
        if count is not None:
            yield f"{path.parent.parent.name} {path.name}", count
    for path in sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")):
        count = number(path)
        if count is not None:
            yield f"{path.parent.name} {path.name}", count


def pi_flags(root: Path) -> int | None:
    """A Raspberry Pi's `get_throttled`; None of another board, and where no file tells it."""
    for path in sorted(root.glob(_PI_FLAGS)):
        said = _word(path)
        if re.fullmatch(r"[0-9a-fA-F]{1,8}", said):
            return int(said, 16)
    return None


def pi_now(flags: int) -> tuple[str, ...]:
    """What slows a Raspberry Pi down now, from its `get_throttled`."""
    return tuple(name for bit, name in _PI_BITS.items() if flags >> bit & 1)


def pi_since_start(flags: int) -> dict[str, int]:
    """Whether each of these has happened since the Raspberry Pi started, as 0 or 1."""
    return {
        f"{name} since start": flags >> bit + _PI_SINCE_START & 1 for bit, name in _PI_BITS.items()
    }


def number(path: Path) -> int | None:
    """The whole number that a file holds; None where it holds another thing, or is not there."""
    said = _word(path)
    return int(said) if re.fullmatch(r"-?\d{1,18}", said) else None


def text(path: Path) -> str | None:
    """A file of the kernel; a sensor that is switched off refuses to be read."""
    try:
        return path.read_text("ascii", errors="replace")
    except OSError:
        return None


def _word(path: Path) -> str:
    return (text(path) or "").strip()


def _hwmon(root: Path) -> Iterator[tuple[Path, str]]:
    """Sensor chips, each with its name."""
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        yield chip, _word(chip / "name")
