"""Timings are taken in turns, and a speed-up compares what stood side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.manifest import TensorSpec
from edgekit_converters.measure import Interleaved, Timing, speedup, speedup_quartiles
from edgekit_runtime.engines import Session, Tensors


class Machine:
    """A clock that only sessions move, and that runs at half speed every other block of eight."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.order: list[str] = []

    def read(self) -> float:
        return self.now_s

    def session(self, name: str, taken_s: float) -> Session:
        return _Work(self, name, taken_s)


class _Work:
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    providers: tuple[str, ...] = ()
    placement = None

    def __init__(self, machine: Machine, name: str, taken_s: float) -> None:
        self._machine = machine
        self._name = name
        self._taken_s = taken_s

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        slow = 2 if len(self._machine.order) // 32 % 2 else 1
        self._machine.order.append(self._name)
        self._machine.now_s += self._taken_s * slow
        return {}

    def close(self) -> None:
        return None


def test_a_machine_of_changing_speed_does_not_change_the_speed_up() -> None:
    machine = Machine()
    sessions = {"float": machine.session("float", 0.010), "int8": machine.session("int8", 0.004)}

    timings = Interleaved(now=machine.read, cpu=None).measure(sessions, {})

    assert speedup(timings["float"], timings["int8"]) == pytest.approx(2.5)


def test_sessions_take_turns_and_none_always_follows_the_other() -> None:
    machine = Machine()
    sessions = {"a": machine.session("a", 0.001), "b": machine.session("b", 0.001)}

    Interleaved(blocks=4, runs=1, now=machine.read, cpu=None).measure(sessions, {})

    assert "".join(machine.order[10:]) == "abbaabba"


def test_a_slow_model_is_measured_within_the_limit() -> None:
    machine = Machine()
    sessions = {"float": machine.session("float", 0.5)}

    timing = Interleaved(limit_s=6.0, now=machine.read, cpu=None).measure(sessions, {})["float"]

    assert len(timing.blocks_ms) >= 3
    assert machine.now_s <= 25


def test_quantiles_are_over_all_runs() -> None:
    timing = Timing(blocks_ms=((1.0, 2.0, 3.0), (4.0, 5.0)))

    assert timing.p50_ms == 3.0
    assert timing.p99_ms == pytest.approx(4.96)


BLOCKS = st.lists(st.floats(0.1, 100), min_size=3, max_size=3)


@given(blocks=st.lists(BLOCKS, min_size=3, max_size=9), factor=st.floats(0.2, 5))
def test_the_speed_up_of_a_scaled_timing_is_the_scale(
    blocks: list[list[float]], factor: float
) -> None:
    timing = Timing(blocks_ms=tuple(map(tuple, blocks)))
    parent = Timing(blocks_ms=tuple(tuple(ms * factor for ms in block) for block in blocks))

    low, high = speedup_quartiles(parent, timing)

    assert speedup(parent, timing) == pytest.approx(factor)
    assert low <= high * (1 + 1e-9)
