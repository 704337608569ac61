"""Measure: how fast artefacts are, side by side.

A machine is never quite idle and never of constant speed, so no two figures taken one after the
other can be compared. Sessions take turns in short blocks; a speed-up is the median of the ratios
of blocks that stood beside each other. What decides is passed in as a `Measurer`, so rules that use
timings are tested with plain numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

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
    """Latencies of one session in milliseconds, block by block, each run for itself."""

    blocks_ms: tuple[tuple[float, ...], ...]

    @property
    def p50_ms(self) -> float:
        return float(np.quantile(self._all(), 0.5))

    @property
    def p99_ms(self) -> float:
        return float(np.quantile(self._all(), 0.99))

    def medians_ms(self) -> NDArray[np.float64]:
        """The median of each block."""
        return np.array([np.median(block) for block in self.blocks_ms])

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
    """

    def __init__(
        self,
        *,
        blocks: int = _BLOCKS,
        runs: int = _RUNS,
        limit_s: float = _LIMIT_S,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._blocks = blocks
        self._runs = runs
        self._limit_s = limit_s
        self._now = now

    def measure(
        self, sessions: Mapping[str, Session], inputs: Tensors, *, quick: bool = False
    ) -> dict[str, Timing]:
        once_s = sum(self._warm_up(session, inputs) for session in sessions.values())
        share = _QUICK if quick else 1.0
        affordable = self._limit_s * share / max(once_s, 1e-9)
        blocks = max(3, min(round(self._blocks * share), int(affordable)))
        runs = max(1, min(self._runs, int(affordable / blocks)))
        taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in sessions}
        for turn in range(blocks):
            # Every other turn runs backwards, so that no session always follows the same one.
            names = list(sessions) if turn % 2 == 0 else list(sessions)[::-1]
            for name in names:
                taken[name].append(self._block(sessions[name], inputs, runs))
        return {name: Timing(blocks_ms=tuple(blocks_ms)) for name, blocks_ms in taken.items()}

    def _warm_up(self, session: Session, inputs: Tensors) -> float:
        """Seconds of one run, after first runs that allocate."""
        fastest = float("inf")
        spent_s = 0.0
        for _ in range(_WARM_UP):
            (taken_ms,) = self._block(session, inputs, 1)
            fastest = min(fastest, taken_ms / 1e3)
            spent_s += taken_ms / 1e3
            if spent_s > self._limit_s / 4:
                break
        return fastest

    def _block(self, session: Session, inputs: Tensors, runs: int) -> tuple[float, ...]:
        taken = []
        for _ in range(runs):
            start = self._now()
            session.run(inputs)
            taken.append((self._now() - start) * 1e3)
        return tuple(taken)


def joined(timings: Sequence[Timing]) -> Timing:
    """Several measurements of one artefact as one."""
    return Timing(blocks_ms=tuple(block for timing in timings for block in timing.blocks_ms))


def speedup(parent: Timing, timing: Timing) -> float:
    """How many times faster than `parent`: the median over blocks that stood side by side."""
    return float(np.median(parent.medians_ms() / timing.medians_ms()))


def speedup_quartiles(parent: Timing, timing: Timing) -> tuple[float, float]:
    """The middle half of the ratios that `speedup` is the median of."""
    low, high = np.quantile(parent.medians_ms() / timing.medians_ms(), (0.25, 0.75))
    return float(low), float(high)
