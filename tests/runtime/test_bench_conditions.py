"""Heat, clocks and throttling of a board, read from a folder with the files that Linux has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.board import conditions
from edgekit_runtime.board.conditions import Conditions, Reading

PI_FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"


def system(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def clock(mhz: float, *, at_s: float = 0.0, idle_mhz: float = 600.0) -> Reading:
    return Reading(at_s=at_s, clocks_mhz={"cpu0": mhz, "cpu1": idle_mhz})


def during(readings: Sequence[Reading], **around: Reading) -> Conditions:
    quiet = Reading(at_s=0.0)
    return Conditions(
        before=around.get("before", quiet),
        during=tuple(readings),
        after=around.get("after", quiet),
    )


def test_a_raspberry_pi_tells_its_heat_clocks_and_flags(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "61200\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2400000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
            "sys/class/devfreq/fb000000.gpu/cur_freq": "300000000\n",
            PI_FLAGS: "50005\n",
            "proc/loadavg": "0.52 0.58 0.59 1/467 2091\n",
        },
    )

    found = conditions.read(root, at_s=1.5, tools=False)
    whole = conditions.around(found, [found], found, root=root)

    assert found.temperatures_c == {"zone0 cpu-thermal": 61.2}
    assert found.clocks_mhz == {"cpu0": 2400.0}
    assert found.throttled == ("under-voltage", "throttled")
    assert found.events["under-voltage since start"] == 1
    assert found.events["soft temperature limit since start"] == 0
    assert found.devices_mhz == {"fb000000.gpu": 300.0}
    assert found.load == 0.52
    assert whole.governors == ("ondemand",)
    assert whole.max_clock_mhz == whole.allowed_clock_mhz == 2400.0


def test_a_cooling_device_counts_where_it_slows_the_chip_and_not_where_it_turns_a_fan(
    tmp_path: Path,
) -> None:
    root = system(
        tmp_path,
        {
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "3\n",
            "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
            "sys/class/thermal/cooling_device1/cur_state": "2\n",
            "sys/class/thermal/cooling_device2/type": "devfreq-gpu\n",
            "sys/class/thermal/cooling_device2/cur_state": "0\n",
        },
    )

    found = conditions.read(root, at_s=0.0, tools=False)

    assert found.throttled == ("cooling by cpufreq-cpu0 at step 2",)


def test_what_a_board_does_not_tell_is_missing(tmp_path: Path) -> None:
    found = conditions.read(tmp_path, at_s=0.0, tools=True)

    assert found == Reading(at_s=0.0)
    assert conditions.reasons_void(during([found]), max_clock_drop=0.1) == ()


@given(st.binary(max_size=40))
def test_no_content_of_a_file_of_the_kernel_breaks_a_reader(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    root = tmp_path_factory.mktemp("board")
    for name in (
        "sys/class/thermal/thermal_zone0/temp",
        "sys/class/thermal/cooling_device0/cur_state",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
        PI_FLAGS,
        "proc/loadavg",
    ):
        system(root, {name: ""})
        (root / name).write_bytes(content)

    conditions.read(root, at_s=0.0, tools=False)


def test_a_counter_that_grows_voids_a_run_and_an_old_count_does_not() -> None:
    old = Reading(at_s=0.0, events={"cpu0 core_throttle_count": 7})
    grown = Reading(at_s=9.0, events={"cpu0 core_throttle_count": 9})

    steady = conditions.reasons_void(during([], before=old, after=old), max_clock_drop=0.1)
    (reason,) = conditions.reasons_void(during([], before=old, after=grown), max_clock_drop=0.1)

    assert steady == ()
    assert "from 7 to 9" in reason


def test_a_raspberry_pi_that_was_throttled_in_between_voids_a_run(tmp_path: Path) -> None:
    before = conditions.read(system(tmp_path, {PI_FLAGS: "0\n"}), at_s=0.0, tools=False)
    after = conditions.read(system(tmp_path, {PI_FLAGS: "40000\n"}), at_s=9.0, tools=False)

    found = during([], before=before, after=after)

    assert conditions.reasons_void(found, max_clock_drop=0.1) == (
        "the board was throttled: throttled since start went from 0 to 1",
    )


def test_a_board_throttled_at_any_moment_voids_a_run_and_says_when() -> None:
    hot = [Reading(at_s=2.5, throttled=("throttled",)), Reading(at_s=3.0, throttled=("throttled",))]

    reasons = conditions.reasons_void(during(hot), max_clock_drop=0.1)

    assert reasons == ("the board was throttled: throttled (first seen at 2.5 s)",)


def test_clocks_that_fall_void_a_run() -> None:
    falling = [clock(mhz) for mhz in (2400, 2400, 2400, 2000, 1800, 1500, 1500, 1500)]

    (reason,) = conditions.reasons_void(during(falling), max_clock_drop=0.1)

    assert "from 2400 to 1500 MHz" in reason
    assert conditions.reasons_void(during(falling), max_clock_drop=0.5) == ()


def test_a_governor_that_speeds_up_at_the_start_voids_nothing() -> None:
    rising = [clock(mhz) for mhz in (600, 1500, 2400, 2400, 2400, 2400, 2400, 2400)]

    assert conditions.reasons_void(during(rising), max_clock_drop=0.1) == ()


@given(st.lists(st.floats(1, 5000), min_size=1, max_size=40))
def test_a_fall_is_a_share_and_lies_between_the_extremes(clocks: list[float]) -> None:
    found = conditions.clock_drop([clock(mhz, idle_mhz=0) for mhz in clocks])

    assert found is not None
    share, high, low = found
    assert 0 <= share < 1
    assert min(clocks) <= low <= high <= max(clocks)


@given(st.lists(st.floats(1, 5000), min_size=1, max_size=40))
def test_clocks_that_only_rise_never_fall(clocks: list[float]) -> None:
    found = conditions.clock_drop([clock(mhz, idle_mhz=0) for mhz in sorted(clocks)])

    assert found is not None
    assert found[0] == 0


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W\n2\n", "MODE_15W"),
        ("nothing of the kind", None),
    ],
)
def test_the_power_mode_of_a_jetson_is_read(text: str, mode: str | None) -> None:
    assert conditions.power_mode(text) == mode
