"""Trial: a loaded version beside the one that serves, on copies of its live inputs.

Promise: live requests are answered as ever. A sample of their inputs is copied, at most as many as
fit into a bounded queue; a thread of low priority runs both versions on them in sessions of its
own, within a share of one core and memory that nothing else holds. Where that cannot be, the
verdict is `undecided` at once, and says why.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from edgekit.clock import Clock, SystemClock
from edgekit.errors import BundleError, EngineError, Overloaded, WorkerLost
from edgekit_runtime import sensors
from edgekit_runtime.canary.answers import Surface
from edgekit_runtime.canary.bench import Bench, OldLost, Skipped
from edgekit_runtime.canary.rules import Finding, conclude, figures, judge
from edgekit_runtime.canary.samples import Samples
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.canary.tap import Tap
from edgekit_runtime.canary.verdict import Decision, Verdict
from edgekit_runtime.serving.served import Served
from edgekit_runtime.update.reasons import Reason

log = logging.getLogger(__name__)

_NICENESS = 10
_POLL_S = 0.25
# The part of the board's free memory that a canary may take where no budget says how much.
_FREE_SHARE = 0.5
# A run that takes longer has hung.
RUN_LIMIT_S = 60.0
MOST_SAMPLES = 20_000
# All samples are judged anew each time: the more there are, the more come between two looks.
LOOK_SHARE = 20


class Past(NamedTuple):
    """What a comparison was before one of its versions, or the daemon, was begun anew.

    Attributes:
        spent_s: seconds of its time limit that are over.
        watched_s: seconds in which the samples were taken.
        samples: what it saw; `None` where that is lost, or of other files.
    """

    spent_s: float = 0.0
    watched_s: float = 0.0
    samples: Samples | None = None


class Trial:
    """A comparison that is under way.

    Args:
        old: what serves.
        new: what was loaded, and is not visible.
        settings: how sure to be, and what it may take.
        clock: for time limits.
        rng: chooses samples, and which version runs first.
        past: what this comparison goes on from.
    """

    def __init__(
        self,
        old: Served,
        new: Served,
        *,
        settings: CanarySection,
        clock: Clock | None = None,
        rng: np.random.Generator | None = None,
        past: Past = Past(),  # noqa: B008 - frozen
    ) -> None:
        self._past = past
        self._old = old
        self._new = new
        self._settings = settings
        self._clock = clock or SystemClock()
        self._rng = rng or np.random.default_rng()
        self._tap = Tap(
            spacing_s=settings.spacing_s,
            queue_bytes=settings.queue_bytes,
            clock=self._clock.monotonic,
            rng=self._rng,
        )
        self._samples = past.samples or Samples()
        self._finding = Finding(decision="undecided")
        self._skipped = 0
        self._begun_s = self._since_s = self._clock.monotonic()
        self._running_since_s: float | None = None
        self._bench: Bench | None = None
        self._verdict: Verdict | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        name = f"canary {new.name}"
        self._thread = threading.Thread(target=self._run_or_log, name=name, daemon=True)
        if (why := _hindrance(old, new)) is not None:
            self._end("undecided", None, why)
        else:
            self._thread.start()

    def verdict(self) -> Verdict | None:
        """How it ended; `None` while it goes on."""
        if self._verdict is None:
            self._look_at_clock()
        return self._verdict

    def progress(self) -> float:
        """How far it is, 0 to 1: by the evidence, or by the time that is left."""
        if self._verdict is not None:
            return 1.0
        passed = self.spent_s / self._settings.limit_s
        return min(1.0, max(self._finding.progress, passed, 0.0))

    @property
    def spent_s(self) -> float:
        """How much of the time limit is over, in seconds, that of `past` included."""
        return self._past.spent_s + self._clock.monotonic() - self._begun_s

    def again(self, old: Served) -> Trial:
        """Close, and go on with the version that serves where that was opened anew.

        The time limit counts on. What was seen stays where it is of the same files: both sessions
        are the comparison's own, opened from them beside what serves, so that a reload changes
        nothing of what is measured.
        """
        self.close()
        is_same = (old.digest, old.default.name) == (self._old.digest, self._old.default.name)
        # A run that has hung may still end, and add to what it saw.
        keeps = is_same and not self._thread.is_alive()
        return Trial(
            old,
            self._new,
            settings=self._settings,
            clock=self._clock,
            rng=self._rng,
            past=Past(
                spent_s=self.spent_s,
                watched_s=self._watched_s() if keeps else 0.0,
                samples=self._samples if keeps else None,
            ),
        )

    @property
    def runs_new(self) -> bool:
        """Whether the new version runs beside live requests at this moment."""
        return (
            self._running_since_s is not None and self._bench is not None and self._bench.runs_new
        )

    def close(self) -> None:
        """Take no more live inputs and give back both sessions, after the run under way."""
        self._stop.set()
        self._old.shadow = None
        self._tap.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_POLL_S if self._has_hung() else RUN_LIMIT_S)

    def _look_at_clock(self) -> None:
        now_s = self._clock.monotonic()
        if self._has_hung():
            detail = f"a run has not ended within {RUN_LIMIT_S:g} s"
            if self.runs_new:
                self._end("roll_back", Reason.CANARY_CRASHED, detail)
            else:
                self._end("undecided", None, f"{detail} in the version that serves")
        elif self.spent_s > self._settings.limit_s or len(self._samples) >= MOST_SAMPLES:
            self._end_late()
        elif not self._was_asked and now_s - self._since_s > self._settings.idle_s:
            idle_s = self._settings.idle_s
            self._end("undecided", None, f"there were no live inputs within {idle_s:g} s")

    @property
    def _was_asked(self) -> bool:
        return self._tap.taken > 0 or len(self._samples) > 0

    def _watched_s(self) -> float:
        """How long live inputs have been looked at, in seconds."""
        return self._past.watched_s + self._clock.monotonic() - self._since_s

    def _has_hung(self) -> bool:
        since_s = self._running_since_s
        return since_s is not None and self._clock.monotonic() - since_s > RUN_LIMIT_S

    def _end_late(self) -> None:
        detail = f"{len(self._samples)} live inputs did not decide within the time limit"
        if self._settings.on_timeout == "roll_back":
            self._end("roll_back", Reason.CANARY_TIMEOUT, detail)
        else:
            self._end("undecided", None, detail)

    def _end(self, decision: Decision, reason: Reason | None, detail: str) -> None:
        told = self._figures(figures(self._samples, block=self._finding.block))
        self._give(Verdict(decision=decision, reason=reason, figures=told, detail=detail))

    def _give(self, verdict: Verdict) -> None:
        with self._lock:
            # The first verdict counts, whether the clock or the evidence came to it.
            if self._verdict is not None:
                return
            self._verdict = verdict
        self._old.shadow = None
        facts = {"model": self._new.name, "version": self._new.version, **verdict.figures}
        log.info(f"canary: {verdict.decision}", extra={**facts, "detail": verdict.detail})

    def _figures(self, told: dict[str, float | int]) -> dict[str, float | int]:
        seconds = round(self._watched_s(), 1)
        return {**told, "seconds": seconds, "dropped": self._tap.dropped, "skipped": self._skipped}

    # The thread.

    def _run_or_log(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
            with self._opened() as bench:
                if bench is not None:
                    self._compare(bench)
        except Exception as e:  # the daemon goes on; the log has the traceback
            log.exception("canary failed", extra={"model": self._new.name})
            # Nothing speaks for the version, and what is unforeseen may well be its doing.
            self._end("roll_back", Reason.INTERNAL, f"{type(e).__name__}: {e}")
        finally:
            self._old.shadow = None

    @contextmanager
    def _opened(self) -> Iterator[Bench | None]:
        """Both sessions, opened by this thread: what engines start inherits its low priority.

        `None` where they cannot be, which is no fault of either version.
        """
        with ExitStack() as opened:
            try:
                old = opened.enter_context(self._old.beside())
                new = opened.enter_context(self._new.beside())
            except Overloaded as e:
                self._end("undecided", None, f"no room for a canary: {e.message}")
                yield None
                return
            except (EngineError, BundleError) as e:
                self._end("undecided", None, f"no second session can be opened: {e.message}")
                yield None
                return
            yield Bench(
                old,
                new,
                surfaces=(_surface(self._old), _surface(self._new)),
                tolerance=self._settings.tolerance,
                rng=self._rng,
            )

    def _compare(self, bench: Bench) -> None:
        self._bench = bench
        self._since_s = self._clock.monotonic()
        self._old.shadow = None if self._stop.is_set() else self._tap
        next_look = 1
        is_warm = False
        while self._verdict is None and not self._stop.is_set():
            inputs = self._tap.take(_POLL_S)
            if inputs is None:
                continue
            is_early = self._watched_s() < self._settings.min_s
            started_s = self._running_since_s = self._clock.monotonic()
            try:
                sample = bench.try_both(inputs)
            except WorkerLost as e:
                self._end("roll_back", Reason.CANARY_CRASHED, e.message)
                return
            except OldLost as e:
                self._end("undecided", None, f"the version that serves was lost: {e.message}")
                return
            except Skipped as e:
                self._skipped += 1
                log.debug("canary skips an input", extra={"reason": e.message})
                continue
            finally:
                self._running_since_s = None
            if is_warm:
                self._samples.add(sample)
            # The first run of a session pays for what engines do once.
            is_warm = True
            if len(self._samples) >= next_look and not is_early:
                self._judge()
                next_look = later(len(self._samples))
            self._rest(self._clock.monotonic() - started_s)

    def _judge(self) -> None:
        settings = self._settings
        self._finding = judge(self._samples, settings)
        if self._finding.decision != "undecided":
            verdict = conclude(self._samples, self._finding)
            self._give(replace(verdict, figures=self._figures(verdict.figures)))

    def _rest(self, spent_s: float) -> None:
        """Leave the core to others for as long as its share asks."""
        self._stop.wait(spent_s * (1 / self._settings.cpu_share - 1))


def later(count: int) -> int:
    """Samples at the next look, after one at so many."""
    return count + 1 + count // LOOK_SHARE


def _surface(served: Served) -> Surface:
    return Surface(served.manifest.pipeline.post, served.outputs)


def _hindrance(old: Served, new: Served) -> str | None:
    """Why two versions cannot be compared here; `None` where they can."""
    if old.inputs != new.inputs:
        return f"version {new.version} takes other inputs than {old.version}"
    if {spec.name for spec in old.outputs} != {spec.name for spec in new.outputs}:
        return f"version {new.version} gives other outputs than {old.version}"
    if old.scheduler.is_held or not old.is_ready:
        return f"version {old.version} made room for {new.version}: there is none for both"
    needed = sum(served.variant.needs.memory_mb << 20 for served in (old, new))
    free = sensors.read(old.folder).memory_free_bytes
    if free is not None and needed > _FREE_SHARE * free:
        return f"a canary needs {needed >> 20} MB, {free >> 20} MB of memory are free"
    return None
