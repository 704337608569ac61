"""Telemetry: counters of the models and of the board, every interval, into the outbox.

One thread owns it and the sender, so that what is appended is also sent. Promise: an interval in
which the link is down is told later, not left out; what the outbox gave up is told too.

At an interval of a minute or more, messages wait for each other up to five minutes and travel
together; who sets a shorter one is watching, and gets each as it is made. Events never wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from edgekit import messages
from edgekit.clock import Clock
from edgekit.messages import (
    About,
    DriftFigures,
    Event,
    ModelFigures,
    ModelState,
    Part,
    Resources,
    Telemetry,
)
from edgekit_runtime import about as about_
from edgekit_runtime import sensors
from edgekit_runtime.outbox import Outbox
from edgekit_runtime.parts import Parts
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
Slots = Callable[[], Mapping[str, ModelState]]

BATCH_S = 300.0
SHORTEST_BATCHED_S = 60.0
# Losses go on as long as there is no room: they are told as an event this often, at most.
_LOSSES_EVERY_S = 3600.0

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
        slots: where the device is with each model.
        on_slots: called when a message that carries the slots was appended.
        about: what the device runs on; asked once.
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
        slots: Slots = dict,
        on_slots: Callable[[], None] = lambda: None,
        about: Callable[[], About] = about_.read,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._boot = boot
        self._figures = figures
        self._resources = resources
        self._drifts = drifts
        self._slots = slots
        self._on_slots = on_slots
        self._about = about
        self._known_about: About | None = None
        self._parts = Parts()
        self._clock = clock
        self._since = clock.monotonic()
        self._told_dropped = 0
        self._losses_told_at = float("-inf")
        self._wake = threading.Event()
        self.set_interval(interval_s)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    @property
    def interval_s(self) -> float:
        """Between two telemetry messages."""
        return self._interval_s

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def set_interval(self, seconds: float) -> None:
        """Change the interval; the one that runs ends by the new length."""
        self._interval_s = seconds
        self._sender.linger_s = linger_s(seconds)
        self._wake.set()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Append the last interval, give it to the link and end the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self.observe()
        self._sender.hasten()
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
                up=self._up_ms(),
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
        figures, resources = tuple(self._figures()), sensors.rounded(self._resources())
        about, slots, drifts = self._read_about(), _compared(self._slots()), self._drifts()
        outbox = self._outbox.figures()
        has_slots = False

        def make(seq: int) -> Telemetry:
            nonlocal has_slots
            bodies: dict[Part, object] = {
                "about": about,
                "slots": slots,
                "drift": [msgspec.structs.replace(one, rows=0, sketch=None) for one in drifts],
            }
            told = self._parts.tell(bodies, seq=seq, now_s=now)
            has_slots = told["slots"] == seq
            return Telemetry(
                boot=self._boot,
                seq=seq,
                floor=seq,
                at=self._clock.now_ms(),
                up=self._up_ms(),
                period_s=round(period_s, 3),
                models=figures,
                told=told,
                about=about if told["about"] == seq else None,
                slots=slots if told["slots"] == seq else None,
                drift=_bounded(drifts) if told["drift"] == seq else (),
                resources=resources,
                outbox=outbox,
            )

        if not self._outbox.append("telemetry", make):
            self._parts.forget()
        elif has_slots:
            self._on_slots()

    def _read_about(self) -> About:
        if self._known_about is None:
            self._known_about = self._about()
        return self._known_about

    def _up_ms(self) -> int:
        return round(self._clock.monotonic() * 1000)

    def _tell_losses(self) -> None:
        """Say how much the outbox gave up, when it begins and while it goes on."""
        dropped, now = self._outbox.dropped, self._clock.monotonic()
        if dropped == self._told_dropped or now - self._losses_told_at < _LOSSES_EVERY_S:
            return
        figures = self._outbox.figures()
        self._told_dropped, self._losses_told_at = dropped, now
        self.event(
            "outbox_dropped",
            f"{dropped} messages were given up since the start, the least important first",
            level="warning",
            dropped_bytes=figures.dropped_bytes,
            **figures.dropped,
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
        self._tell_losses()
        sender_s = self._sender.step()
        return min(due_s, sender_s, self._outbox.tick())


def linger_s(interval_s: float) -> float:
    """How long telemetry waits for more of it, so that messages of `BATCH_S` travel together.

    Half an interval more than the last of them takes to come, for intervals are never exact.
    """
    if interval_s < SHORTEST_BATCHED_S:
        return 0.0
    in_batch = int(BATCH_S // interval_s)
    return (in_batch - 0.5) * interval_s if in_batch > 1 else 0.0


def log_event(kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
    """Events of a board without a fleet end in its log."""
    log.log(LEVELS[level], kind, extra={"detail": message, **facts})


def _compared(slots: Mapping[str, ModelState]) -> dict[str, ModelState]:
    """States without what changes all the time; the reported state has that."""
    return {
        model: msgspec.structs.replace(state, detail=None, progress=None, figures={})
        for model, state in slots.items()
    }


def _bounded(drifts: Sequence[DriftFigures]) -> tuple[DriftFigures, ...]:
    """What is known of drift, with at most so many sketches that a payload holds them."""
    told, sketches = [], 0
    for drift in drifts:
        sketches += drift.sketch is not None
        told.append(
            drift if sketches <= _MOST_SKETCHES else msgspec.structs.replace(drift, sketch=None)
        )
    return tuple(told)
