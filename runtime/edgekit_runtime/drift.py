"""Drift: what a served model sees and answers, counted by window and held against its build.

Promises: looking costs a hundredth of the time that the engine itself takes, in 64 kB a model, and
deciding whether to look a tenth of a microsecond a batch. Where nothing has changed, at most one
day in a hundred has an alarm, as far as what is seen in different blocks of a window is independent
of each other (docs/drift.md). A block lasts at least a sixteenth of a window, so that what one
block sees of a scene counts once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import Bundle
from edgekit.drift import reference as references
from edgekit.drift.counter import counters
from edgekit.drift.judge import judge_parts
from edgekit.drift.reference import BINS, Reference
from edgekit.drift.sketch import pack
from edgekit.messages import DriftFigures, DriftSketch
from edgekit.structs import Strict
from edgekit_runtime.engines import Tensors

BLOCKS = 16
DAY_S = 86_400.0

_MOST_ROWS = 255
# Of a block's rows that a variant must have answered before the block says something about it.
_LEAST_SHARE = 4
_MOST_CREDIT_NS = 1_000_000
_LEAST_CHARGE_NS = 20_000
# A prime: the position within batches of any size comes round to each row.
_STRIDE = 7919

Counts = NDArray[np.uint8]


class Pace(Strict, frozen=True, kw_only=True):
    """How much is looked at, and when that is held against the reference.

    Attributes:
        share: of the engine's time that looking may cost.
        window_s: a window takes at least this long, in 16 equal blocks.
        block_rows: samples that a block has at least; it lasts longer until it has them.
        alarms_per_day: rate of false alarms; a window's is its share of the day.
    """

    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    window_s: Annotated[float, msgspec.Meta(gt=0, le=DAY_S)] = 3600.0
    block_rows: Annotated[int, msgspec.Meta(ge=1, le=_MOST_ROWS)] = 32
    alarms_per_day: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.01

    @property
    def level(self) -> float:
        """The p value at and below which a window is an alarm."""
        return self.alarms_per_day * self.window_s / DAY_S


class Verdict(Strict, frozen=True, kw_only=True):
    """What a window gave.

    Attributes:
        p: of all parts together (Bonferroni); `drifts` where it is at or below the level.
        distance: of the feature that differs most, 0 to 1.
        feature: its name.
    """

    p: float
    drifts: bool
    distance: float
    feature: str


class State(Strict, frozen=True, kw_only=True):
    """What is known now.

    Attributes:
        rows: samples that were looked at; `unlike` had another shape than those of the build.
        windows: that were judged; `alarms` of them drifted.
        last: of the last one.
    """

    rows: int = 0
    unlike: int = 0
    windows: int = 0
    alarms: int = 0
    last: Verdict | None = None


class Drift:
    """What one served version of a model sees and answers. Safe to use from several threads.

    Args:
        reference: of its bundle.
        digest: hex sha256 of the entry that the reference was read from.
        model: name and version.
        pace: how much is looked at.
        clock: seconds, for windows.
        clock_ns: for what looking costs.
        rng: for judging.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        digest: str,
        model: tuple[str, str],
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.model, self.version = model
        self.state = State()
        self._digest = digest
        self._pace = pace or Pace()
        self._share = self._pace.share
        self._clock = clock
        self._clock_ns = clock_ns
        self._rng = rng or np.random.default_rng()
        self._inputs, *outputs = counters(reference)
        self._outputs = dict(zip(reference.variants, outputs, strict=True))
        self._lock = threading.Lock()
        self._credit_ns = 0.0
        self._turn = 0
        self._finished: Counts | None = None
        self._sketch: DriftSketch | None = None
        self._begin()

    @classmethod
    def of(cls, bundle: Bundle, *, pace: Pace | None = None) -> Drift | None:
        """For an open bundle; `None` where it carries no reference.

        Raises `ManifestError` where that is not valid.
        """
        entry = bundle.manifest.entries.get(references.ENTRY)
        if entry is None:
            return None
        reference = references.decode(bundle.read(references.ENTRY))
        model = bundle.manifest.name, bundle.manifest.version
        return cls(reference, digest=entry.sha256, model=model, pace=pace)

    @property
    def size_bytes(self) -> int:
        """What all counts and edges hold, a finished window included."""
        parts = (self._inputs, *self._outputs.values())
        held = sum(part.edges.nbytes + part.counts.nbytes for part in parts)
        return held + 2 * self._counts.nbytes

    def due(self, run_ns: int) -> bool:
        """Whether it is time to look at a row; once for each batch that the engine ran.

        Args:
            run_ns: time within the engine, of which a share may be spent here.
        """
        # Two threads here at once lose some credit, never gain any.
        self._credit_ns += run_ns * self._share
        return self._credit_ns >= 0

    def observe(self, variant: str, inputs: Tensors, outputs: Tensors, rows: int) -> None:
        """Look at one row of what was run.

        Args:
            variant: that ran.
            inputs: of one request or of a whole batch; only read here and now.
            outputs: of the same.
            rows: samples on axis 0; 0 where the arrays are one sample.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            started_ns = self._clock_ns()
            self._take(variant, inputs, outputs, rows)
            spent_ns = max(self._clock_ns() - started_ns, _LEAST_CHARGE_NS)
            # What was saved up in a long run is not spent at once.
            self._credit_ns = min(self._credit_ns, _MOST_CREDIT_NS) - spent_ns
        finally:
            self._lock.release()

    def judge(self) -> Verdict | None:
        """Hold a window that has ended against the reference; `None` where none has.

        Takes some 10 ms, and half a second where there is drift: not for the event loop.
        """
        with self._lock:
            finished, self._finished = self._finished, None
        if finished is None:
            return None
        verdict = self._verdict(finished)
        with self._lock:
            counts = finished.sum(axis=0, dtype=np.uint64)
            rows = int(counts[self._inputs.place][0].sum()) if len(counts) else 0
            self._sketch = pack(counts, reference=self._digest, rows=rows)
            drifts = verdict is not None and verdict.drifts
            self.state = msgspec.structs.replace(
                self.state,
                windows=self.state.windows + 1,
                alarms=self.state.alarms + drifts,
                last=verdict or self.state.last,
            )
        return verdict

    def figures(self) -> DriftFigures:
        """For telemetry; the sketch of a window is told once."""
        with self._lock:
            sketch, self._sketch = self._sketch, None
            state = self.state
        last = state.last
        return DriftFigures(
            model=self.model,
            version=self.version,
            rows=state.rows,
            windows=state.windows,
            alarms=state.alarms,
            drifts=last is not None and last.drifts,
            p=last.p if last else None,
            distance=last.distance if last else None,
            feature=last.feature if last else "",
            sketch=sketch,
        )

    def _begin(self) -> None:
        features = sum(len(part.names) for part in (self._inputs, *self._outputs.values()))
        self._counts: Counts = np.zeros((BLOCKS, features, BINS), np.uint8)
        self._block = 0
        self._block_rows = 0
        self._since = self._clock()

    def _take(self, variant: str, inputs: Tensors, outputs: Tensors, rows: int) -> None:
        self._turn_over()
        if self._block_rows == _MOST_ROWS:
            return
        self._turn += _STRIDE
        position = self._turn % max(1, rows)
        answered = self._outputs.get(variant)
        seen = self._inputs.bins(inputs, position)
        given = None if answered is None else answered.bins(outputs, position)
        if seen is None:
            self.state = msgspec.structs.replace(self.state, unlike=self.state.unlike + 1)
            return
        block = self._counts[self._block]
        self._inputs.add(block, seen)
        if answered is not None and given is not None:
            answered.add(block, given)
        self._block_rows += 1
        self.state = msgspec.structs.replace(self.state, rows=self.state.rows + 1)

    def _turn_over(self) -> None:
        """Begin the next block, or the next window, where it is time."""
        now = self._clock()
        if self._block_rows < self._pace.block_rows:
            return
        if now - self._since < self._pace.window_s / BLOCKS:
            return
        self._block += 1
        self._block_rows = 0
        self._since = now
        if self._block == BLOCKS:
            self._finished = self._counts
            self._begin()

    def _verdict(self, finished: Counts) -> Verdict | None:
        parts = (self._inputs, *self._outputs.values())
        found = judge_parts(
            [(part.counts, finished[:, part.place]) for part in parts],
            least_rows=max(1, self._pace.block_rows // _LEAST_SHARE),
            rng=self._rng,
        )
        if found is None:
            return None
        position, finding = found
        return Verdict(
            p=finding.p,
            drifts=finding.p <= self._pace.level,
            distance=finding.distance,
            feature=parts[position].names[finding.feature],
        )
