"""Telemetry: counters of the models and of the board, every interval, into the outbox.

One thread owns it and the sender, so that what is appended is also sent. Promise: an interval in
which the link is down is told later, not left out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from edgekit import messages
from edgekit.clock import Clock
from edgekit.messages import DriftFigures, Event, ModelFigures, Resources, Telemetry
from edgekit_runtime.outbox import Outbox
from edgekit_runtime.sender import Sender

log = logging.getLogger(__name__)

Level = Literal["info", "warning", "error"]
LEVELS: Mapping[Level, int] = {
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
Figures = Callable[[], Sequence[ModelFigures]]
Drifts = Callable[[], Sequence[DriftFigures]]

# As many sketches as fit a payload beside everything else.
_MOST_SKETCHES = 16


class Events(Protocol):
    """Where something that an operator may want to know is told."""

    def __call__(
        self, kind: str, message: str, *, level: Level = "info", **facts: object
    ) -> None: ...


class Reporter:
    """Appends telemetry and events to the outbox and keeps the sender going.

    Args:
        outbox: where messages wait.
        sender: who sends them.
        boot: of this start of the daemon.
        interval_s: between two telemetry messages.
        figures: what the models did since it was last called.
        resources: what the board uses now.
        drifts: what is known of each model's drift.
        clock: for the interval and the time stamps.
    """

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        *,
        boot: str,
        interval_s: float,
        figures: Figures,
        resources: Callable[[], Resources],
        drifts: Drifts = tuple,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._boot = boot
        self._interval_s = interval_s
        self._figures = figures
        self._resources = resources
        self._drifts = drifts
        self._clock = clock
        self._since = clock.monotonic()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Append the last interval, give it to the link and end the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self.observe()
        self._sender.step()

    def wake(self) -> None:
        """Something changed: an acknowledgement, a connection."""
        self._wake.set()

    def event(self, kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        """Tell the fleet that something happened; also a line in the log."""
        log.log(LEVELS[level], kind, extra={"detail": message, **facts})
        self._outbox.append(
            "event",
            lambda seq: Event(
                boot=self._boot,
                seq=seq,
                floor=seq,
                at=self._clock.now_ms(),
                kind=kind,
                level=level,
                message=message[:2000],
                facts=messages.facts(**facts),
            ),
        )
        self._wake.set()

    def observe(self) -> None:
        """Append what happened since the last time."""
        now = self._clock.monotonic()
        period_s, self._since = now - self._since, now
        figures, resources = tuple(self._figures()), self._resources()
        drifts = _bounded(self._drifts())
        self._outbox.append(
            "telemetry",
            lambda seq: Telemetry(
                boot=self._boot,
                seq=seq,
                floor=seq,
                at=self._clock.now_ms(),
                period_s=period_s,
                models=figures,
                drift=drifts,
                resources=resources,
                outbox_dropped=self._outbox.dropped,
            ),
        )

    def _run(self) -> None:
        while not self._stopping:
            try:
                wait_s = self._turn()
            except Exception:  # the daemon goes on; the log has the traceback
                log.exception("outbox turn failed")
                wait_s = self._interval_s
            self._wake.wait(wait_s)
            self._wake.clear()

    def _turn(self) -> float:
        due_s = self._since + self._interval_s - self._clock.monotonic()
        if due_s <= 0:
            self.observe()
            due_s = self._interval_s
        if self._outbox.take_damage():
            self.event("outbox_reset", "the outbox was damaged and begun anew", level="error")
        return min(due_s, self._sender.step())


def log_event(kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
    """Events of a board without a fleet end in its log."""
    log.log(LEVELS[level], kind, extra={"detail": message, **facts})


def _bounded(drifts: Sequence[DriftFigures]) -> tuple[DriftFigures, ...]:
    """What is known of drift, with at most so many sketches that a payload holds them."""
    told, sketches = [], 0
    for drift in drifts:
        sketches += drift.sketch is not None
        told.append(
            drift if sketches <= _MOST_SKETCHES else msgspec.structs.replace(drift, sketch=None)
        )
    return tuple(told)
