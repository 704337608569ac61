"""Threads within one operator, chosen for the board where a variant does not say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime.engines.threads import MOST, Cores, cores, default_threads, with_defaults


def machine(root: Path, files: Mapping[str, str]) -> Path:
    """A machine by its files below `/sys/devices/system/cpu`."""
    for name, text in files.items():
        path = root / "sys/devices/system/cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_of_a_big_little_board_only_the_big_cores_count(tmp_path: Path) -> None:
    """RK3588: four Cortex-A55, four Cortex-A76 that differ by a little."""
    capacity = [530] * 4 + [1024, 1024, 1000, 1000]
    files = {f"cpu{n}/cpu_capacity": str(value) for n, value in enumerate(capacity)}

    here = cores(root=machine(tmp_path, files), allowed=range(8))

    assert here == Cores(fast=4, slow=4)
    assert default_threads(here, models=1) == 4


def test_clocks_tell_where_capacities_do_not(tmp_path: Path) -> None:
    clocks = ["2400000", "2400000", "1500000"]
    files = {f"cpu{n}/cpufreq/cpuinfo_max_freq": clock for n, clock in enumerate(clocks)}

    assert cores(root=machine(tmp_path, files), allowed=range(3)) == Cores(fast=2, slow=1)


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    files = {f"cpu{n}/topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}" for n in range(4)}

    assert cores(root=machine(tmp_path, files), allowed=range(4)) == Cores(fast=2)


def test_only_cores_that_may_be_used_count(tmp_path: Path) -> None:
    files = {f"cpu{n}/cpu_capacity": "1024" for n in range(4)}

    assert cores(root=machine(tmp_path, files), allowed=[1, 2]) == Cores(fast=2)


def test_a_machine_that_tells_nothing_has_cores_that_are_alike(tmp_path: Path) -> None:
    assert cores(root=tmp_path, allowed=range(4)) == Cores(fast=4)
    assert cores(root=tmp_path, allowed=[]) == Cores(fast=1)


def test_this_machine_has_a_core() -> None:
    assert cores().fast >= 1


@pytest.mark.parametrize(
    ("here", "models", "threads"),
    [
        (Cores(fast=4), 1, 3),  # Raspberry Pi 5: one core for the rest
        (Cores(fast=4, slow=4), 2, 2),
        (Cores(fast=4), 3, 1),
        (Cores(fast=1), 1, 1),
        (Cores(fast=16), 1, MOST),
    ],
)
def test_models_share_the_cores(here: Cores, models: int, threads: int) -> None:
    assert default_threads(here, models=models) == threads


@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 64))
def test_there_is_always_one_thread_and_never_too_many(fast: int, slow: int, models: int) -> None:
    threads = default_threads(Cores(fast=fast, slow=slow), models=models)

    assert 1 <= threads <= min(MOST, fast)
    assert models < 2 or threads == 1 or threads * models <= fast


def test_what_a_variant_says_wins() -> None:
    assert with_defaults({"threads": 7}, "onnxruntime", models=1) == {"threads": 7}


@pytest.mark.parametrize("engine", ["rknn", "hailo", "of_somebody_else"])
def test_an_engine_that_takes_none_is_given_none(engine: str) -> None:
    assert with_defaults({}, engine, models=1) == {}


@pytest.mark.parametrize("engine", ["onnxruntime", "litert", "tflite-runtime", "openvino"])
def test_an_engine_that_takes_them_gets_the_boards(engine: str) -> None:
    given_so = with_defaults({}, engine, models=1, here=Cores(fast=2, slow=2))

    assert given_so == {"threads": 2}
