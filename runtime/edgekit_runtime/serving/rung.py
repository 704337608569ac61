"""Rung: one variant of a served model, as the scheduler sees it; open, closed or on its way."""

from __future__ import annotations

import time
from typing import Literal

from edgekit.manifest import TensorSpec, Variant
from edgekit_runtime.engines.placed import Placed
from edgekit_runtime.probe import ProbeResult
from edgekit_runtime.serving.breaker import Breaker
from edgekit_runtime.serving.plan import Plan
from edgekit_runtime.serving.runners import Runner
from edgekit_runtime.serving.stats import Stats

# Compiling: its engine makes a form of its own of it on this board, which nobody waits for.
State = Literal["closed", "opening", "compiling", "ready", "lost"]

# As TCP follows round trips (Jacobson, Congestion Avoidance and Control, 1988): a mean, and how far
# single runs are from it.
_LEARNING = 1 / 8
_SPREADING = 1 / 4
_SPREADS = 2.0
_PACES = (0.2, 50.0)


class Opened:
    """What there is of a variant while it is open.

    Attributes:
        inputs: of the model, as the engine says.
        outputs: of the model, as the engine says.
        providers: what the engine says it runs on.
        engine_version: of the library that runs it.
        probe: what the golden inputs gave on this machine.
        plan: how it is run.
        placed: where the engine says that the work is done; `None` where it cannot say.
        runner: runs its batches.
        size_bytes: memory that it is counted with.
    """

    def __init__(
        self,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        providers: tuple[str, ...],
        engine_version: str,
        probe: ProbeResult,
        plan: Plan,
        placed: Placed | None,
        runner: Runner,
        size_bytes: int,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.providers = providers
        self.engine_version = engine_version
        self.probe = probe
        self.plan = plan
        self.placed = placed
        self.runner = runner
        self.size_bytes = size_bytes


class Rung:
    """A variant's place on the ladder.

    Attributes:
        variant: of the manifest.
        accuracy: share of the source model's answers that it gives; `None` where nobody measured.
        state: whether it can run.
        reason: why it is closed or lost.
        stats: what it did.
        breaker: what is remembered of its losses.
        losses: how often it was lost.
        pace: how much longer a run takes at present than its plan says.
        spread: how far single runs are from that pace.
        used_at: when it ran last, by the monotonic clock, in seconds.
        asked: whether somebody wants it open.
        barred: whether it is never to be opened again: it computes something else here.
    """

    def __init__(self, variant: Variant, *, accuracy: float | None) -> None:
        self.variant = variant
        self.accuracy = accuracy
        self.stats = Stats()
        self.state: State = "closed"
        self.reason = ""
        self.breaker = Breaker()
        self.losses = 0
        self.pace = 1.0
        self.spread = 0.0
        self.used_at = time.monotonic()
        self.asked = False
        self.barred = False
        self._opened: Opened | None = None

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def opened(self) -> Opened:
        """What there is of it, now or when it was last open."""
        assert self._opened is not None, f"{self.name} was never open"
        return self._opened

    @property
    def was_open(self) -> bool:
        """Whether it ran here before, so that much is known of it."""
        return self._opened is not None

    def put(self, opened: Opened) -> None:
        """It is open."""
        self._opened = opened
        self.pace, self.spread = 1.0, 0.0
        self.reason = ""
        self.state = "ready"

    def run_us(self, rows: int) -> float:
        """What a run takes at present."""
        return self.opened.plan.run_us(rows) * self.pace

    def safe_us(self, rows: int) -> float:
        """What a run hardly ever exceeds at present."""
        return self.opened.plan.run_us(rows) * (self.pace + _SPREADS * self.spread)

    def learn(self, *, rows: int, took_us: float) -> None:
        """A run took this long, on this machine as busy as it is."""
        pace = took_us / max(1.0, self.opened.plan.run_us(rows))
        low, high = _PACES
        error = min(high, max(low, pace)) - self.pace
        self.pace += _LEARNING * error
        self.spread += _SPREADING * (abs(error) - self.spread)
        self.used_at = time.monotonic()
