"""Watch: the thread that judges windows of all models and tells of drift."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from edgekit_runtime.drift import Drift
from edgekit_runtime.telemetry import Events

log = logging.getLogger(__name__)


class Watch:
    """A thread that judges the windows of all models and tells of drift.

    Args:
        drifts: of what is served now.
        events: where an alarm is told.
        interval_s: between two looks.
    """

    def __init__(
        self, drifts: Callable[[], Iterable[Drift]], *, events: Events, interval_s: float = 30.0
    ) -> None:
        self._drifts = drifts
        self._events = events
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; a window that is being judged is judged to its end."""
        self._stop.set()
        self._thread.join()

    def turn(self) -> None:
        """Judge what has ended."""
        for drift in self._drifts():
            verdict = drift.judge()
            if verdict is None:
                continue
            facts = {
                "model": drift.model,
                "version": drift.version,
                "feature": verdict.feature,
                "p": verdict.p,
                "distance": round(verdict.distance, 4),
            }
            log.debug("drift window judged", extra=facts)
            if verdict.drifts:
                self._events(
                    "drift",
                    f"{drift.model} {drift.version}: {verdict.feature} is not what it was at the"
                    f" build (p {verdict.p:.2g}, distance {verdict.distance:.2f})",
                    level="warning",
                    **facts,
                )

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._turn_or_log()

    def _turn_or_log(self) -> None:
        try:
            self.turn()
        except Exception:  # the daemon goes on; the log has the traceback
            log.exception("judging drift failed")
