"""Sensors of boards, read from trees of files; what a board does not tell is left out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime import sensors, sysfs
from edgekit_runtime.board import conditions
from edgekit_runtime.sensors import Board, Sampler
from tests.runtime import trees


def test_a_raspberry_pi_tells_of_heat_clocks_and_a_weak_supply(tmp_path: Path) -> None:
    board = sensors.read_board(trees.plant("raspberry-pi-5", tmp_path))

    assert board.temperatures_c == {"zone0 cpu-thermal": 81.25}
    assert max(board.clocks_mhz.values()) == 2400
    assert board.throttled == ("under-voltage", "throttled")
    assert board.rails_w == {}


def test_without_the_firmwares_flags_under_voltage_is_told_by_hwmon(tmp_path: Path) -> None:
    assert sensors.read_board(trees.plant("raspberry-pi-4", tmp_path)).throttled == (
        "under-voltage",
    )


def test_a_jetson_tells_of_rails_load_and_what_holds_it_down(tmp_path: Path) -> None:
    board = sensors.read_board(trees.plant("jetson-orin-nano", tmp_path))

    assert board.rails_w["VDD_IN"] == pytest.approx(14.999, abs=1e-3)
    assert set(board.rails_w) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert board.devices_mhz == {"17000000.gpu": 624.75}
    assert board.device_loads == {"17000000.gpu": 0.873}
    assert board.throttled == (
        "over-current on VDD_IN",
        "cooling by devfreq-17000000.gpu at step 3",
    )
    assert board.events == {"hwmon0 oc1_event_cnt": 0, "hwmon0 oc3_event_cnt": 17}


def test_a_zone_that_is_switched_off_is_left_out(tmp_path: Path) -> None:
    board = sensors.read_board(trees.plant("jetson-orin-nano", tmp_path))

    assert not [name for name in board.temperatures_c if "cv0" in name]
    assert board.temperatures_c["zone8 tj-thermal"] == 63.031


def test_a_power_channel_that_leads_nowhere_is_left_out(tmp_path: Path) -> None:
    root = trees.plant("jetson-agx-orin", tmp_path)

    assert set(sensors.read_board(root).rails_w) == {
        "VDD_GPU_SOC",
        "VDD_CPU_CV",
        "VIN_SYS_5V0",
        "VDDQ_VDD2_1V8AO",
    }
    # No rail stands for all of this board.
    assert sensors.read(tmp_path, root=root).power_w is None


def test_a_rockchip_tells_of_its_npu(tmp_path: Path) -> None:
    board = sensors.read_board(trees.plant("rk3588", tmp_path))

    assert board.devices_mhz["fdab0000.npu"] == 1000
    assert board.device_loads == {"fdab0000.npu": 0.47, "fb000000.gpu": 0.0}
    assert board.temperatures_c["zone6 npu-thermal"] == 46.23


def test_an_x86_processor_tells_of_cores_energy_and_throttling(tmp_path: Path) -> None:
    board = sensors.read_board(trees.plant("x86_64", tmp_path))

    assert board.temperatures_c["coretemp Package id 0"] == 59
    assert board.energies_j["rapl:0 package-0"] == pytest.approx(262143.32885)
    assert board.events == {"cpu0 core_throttle_count": 12}
    assert board.throttled == ()


@pytest.mark.parametrize("name", trees.BOARDS)
def test_telemetry_metrics_and_benchmarks_read_the_same(name: str, tmp_path: Path) -> None:
    root = trees.plant(name, tmp_path)

    board, reading = sensors.read_board(root), conditions.read(root, at_s=0.0, tools=False)
    resources = sensors.read(tmp_path, root=root)

    assert board.temperatures_c == reading.temperatures_c
    assert board.throttled == reading.throttled == resources.throttled
    assert resources.temperature_c == max(board.temperatures_c.values(), default=None)


@pytest.mark.parametrize("name", trees.BOARDS)
def test_each_tree_says_whether_it_was_recorded(name: str) -> None:
    assert "recorded on a" in (trees.FOLDER / f"{name}.tree").read_text("utf-8")


def test_a_board_that_tells_nothing_is_empty(tmp_path: Path) -> None:
    assert sensors.read_board(tmp_path) == Board()


def test_files_that_hold_no_number_are_left_out(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("none")
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").mkdir(parents=True)

    assert sensors.read_board(tmp_path) == Board()


@given(st.integers(0, (1 << 20) - 1))
def test_the_flags_of_a_raspberry_pi_are_read_bit_by_bit(flags: int) -> None:
    now, since = sysfs.pi_now(flags), sysfs.pi_since_start(flags)

    assert ("under-voltage" in now) == bool(flags & 1)
    assert ("throttled" in now) == bool(flags & 4)
    assert since["soft temperature limit since start"] == flags >> 19


def test_a_sampler_never_waits_and_has_the_board_soon(tmp_path: Path) -> None:
    # A sensor that blocks until somebody writes.
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    os.mkfifo(zone / "temp")
    sampler = Sampler(root=tmp_path, age_s=3600)

    assert sampler.latest() == Board()
    assert sampler.latest() == Board()
    (zone / "temp").write_text("50000")

    until = time.monotonic() + 10
    while sampler.latest() == Board() and time.monotonic() < until:
        time.sleep(0.01)
    assert sampler.latest().temperatures_c == {"zone0": 50.0}
