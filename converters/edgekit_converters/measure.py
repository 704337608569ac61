"""Measure: how fast artefacts are, side by side.

A machine is never quite idle and never of constant speed, so no two figures taken one after the
other can be compared. Sessions take turns in short blocks; a speed-up is the median of the ratios
of blocks that stood beside each other, in CPU time where one thread does all the work. What decides
is passed in as a `Measurer`, so rules that use timings are tested with plain numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_runtime.engines import Session, Tensors

_WARM_UP = 5
_BLOCKS = 15
_RUNS = 8
_LIMIT_S = 6.0
_QUICK = 1 / 3


class Timing(Strict, frozen=True, kw_only=True):
    """Latencies of one session in milliseconds, block by block, each run for itself.

    Attributes:
        cpu_blocks_ms: CPU time of the same runs, where one thread does all the work. Others on
            the machine delay a run; they hardly change what it costs.
    """

    blocks_ms: tuple[tuple[float, ...], ...]
    cpu_blocks_ms: tuple[tuple[float, ...], ...] | None = None

    @property
    def p50_ms(self) -> float:
        return float(np.quantile(self._all(), 0.5))

    @property
    def p99_ms(self) -> float:
        return float(np.quantile(self._all(), 0.99))

    def _all(self) -> NDArray[np.float64]:
        return np.concatenate([np.asarray(block, np.float64) for block in self.blocks_ms])


class Measurer(Protocol):
    """Takes the time of sessions side by side."""

    def measure(
        self, sessions: Mapping[str, Session], inputs: Tensors, *, quick: bool = False
    ) -> dict[str, Timing]:
        """A timing for each session by its name; each is run with the same inputs.

        Args:
            quick: take a third of the time: enough to compare schemes that differ clearly.
        """
        ...


class Interleaved:
    """Measures with the machine's clock; sessions take turns block by block.

    Args:
        blocks: turns of each session.
        runs: runs in a turn; fewer for a slow model, so that all takes about `limit_s`.
        limit_s: seconds that a measurement should take at most.
        now: a clock in seconds.
        cpu: CPU time of this thread in seconds; None does not take it.
    """

    def __init__(
        self,
        *,
        blocks: int = _BLOCKS,
        runs: int = _RUNS,
        limit_s: float = _LIMIT_S,
        now: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] | None = time.thread_time,
    ) -> None:
        self._blocks = blocks
        self._runs = runs
        self._limit_s = limit_s
        self._now = now
        self._cpu = cpu

    def measure(
        self, sessions: Mapping[str, Session], inputs: Tensors, *, quick: bool = False
    ) -> dict[str, Timing]:
        once_s = sum(self._warm_up(session, inputs) for session in sessions.values())
        share = _QUICK if quick else 1.0
        affordable = self._limit_s * share / max(once_s, 1e-9)
        blocks = max(3, min(round(self._blocks * share), int(affordable)))
        runs = max(1, min(self._runs, int(affordable / blocks)))
        taken: dict[str, list[_Block]] = {name: [] for name in sessions}
        for turn in range(blocks):
            # Every other turn runs backwards, so that no session always follows the same one.
            names = list(sessions) if turn % 2 == 0 else list(sessions)[::-1]
            for name in names:
                taken[name].append(self._block(sessions[name], inputs, runs))
        return {
            name: Timing(
                blocks_ms=tuple(block.wall_ms for block in found),
                cpu_blocks_ms=tuple(block.cpu_ms for block in found) if self._cpu else None,
            )
            for name, found in taken.items()
        }

    def _warm_up(self, session: Session, inputs: Tensors) -> float:
        """Seconds of one run, after first runs that allocate."""
        fastest = float("inf")
        spent_s = 0.0
        for _ in range(_WARM_UP):
            (taken_ms,) = self._block(session, inputs, 1).wall_ms
            fastest = min(fastest, taken_ms / 1e3)
            spent_s += taken_ms / 1e3
            if spent_s > self._limit_s / 4:
                break
        return fastest

    def _block(self, session: Session, inputs: Tensors, runs: int) -> _Block:
        wall_ms, cpu_ms = [], []
        for _ in range(runs):
            start, used = self._now(), self._cpu() if self._cpu else 0.0
            session.run(inputs)
            cpu_ms.append(((self._cpu() if self._cpu else 0.0) - used) * 1e3)
            wall_ms.append((self._now() - start) * 1e3)
        return _Block(tuple(wall_ms), tuple(cpu_ms))


class _Block(NamedTuple):
    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]


def joined(timings: Sequence[Timing]) -> Timing:
    """Several measurements of one artefact as one."""
    cpu = [timing.cpu_blocks_ms for timing in timings]
    return Timing(
        blocks_ms=tuple(block for timing in timings for block in timing.blocks_ms),
        cpu_blocks_ms=None
        if None in cpu
        else tuple(block for blocks in cpu if blocks is not None for block in blocks),
    )


def speedup(parent: Timing, timing: Timing) -> float:
    """How many times faster than `parent`: the median over blocks that stood side by side."""
    return float(np.median(_ratios(parent, timing)))


def speedup_quartiles(parent: Timing, timing: Timing) -> tuple[float, float]:
    """The middle half of the ratios that `speedup` is the median of."""
    low, high = np.quantile(_ratios(parent, timing), (0.25, 0.75))
    return float(low), float(high)


def _ratios(parent: Timing, timing: Timing) -> NDArray[np.float64]:
    """How many times faster in each block: in CPU time where both have it, else in wall time."""
    if parent.cpu_blocks_ms is None or timing.cpu_blocks_ms is None:
        return _medians(parent.blocks_ms) / _medians(timing.blocks_ms)
    return _medians(parent.cpu_blocks_ms) / _medians(timing.cpu_blocks_ms)


def _medians(blocks: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array([np.median(block) for block in blocks])
