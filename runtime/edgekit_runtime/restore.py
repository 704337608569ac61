"""Restore: start-up, from whatever state the daemon ended in, to something that serves.

Promise: no model waits for another one that hangs. Models are opened one after the other, each
within the limit of a probe; one that takes long is left to itself and the next one begun beside it,
the daemon serves meanwhile, and what is over its limit makes way for the version before.

What a board lacks at one start, an accelerator whose driver loads late, is no judgement on what was
confirmed: the record goes back only when the version before has opened. Where that fails as well it
stays, its trouble is told, and both are tried again, more and more rarely (`RETRY_S`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.clock import Clock
from edgekit.errors import StorageError
from edgekit_runtime import update
from edgekit_runtime.bounded import Work
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.journal import Journal
from edgekit_runtime.live import Live, Loaded
from edgekit_runtime.slots import Slots
from edgekit_runtime.telemetry import Events, Level
from edgekit_runtime.update import Installed, Reason, Record, SlotName, State, UpdateFailed

log = logging.getLogger(__name__)

S = TypeVar("S")

_ASKED = "asked while the daemon was away"
# The next model is begun beside one that has taken this share of its limit, or so many seconds.
_SLOW_SHARE = 0.1
_SLOW_S = 30.0
_LOOK_S = 0.2
# After a start at which nothing of a model opened; the last of them is followed by none.
RETRY_S = (10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass
class Opening(Generic[S]):
    """A slot on its way to serving.

    Attributes:
        since_s: when it was begun.
        in_place_of: why the active slot does not serve, where this is the one before it.
        is_slow: whether others are opened beside it.
        is_over: whether its limit is over; there is no version before, and it may come yet.
    """

    work: Work[Loaded[S]]
    slot: SlotName
    held: Installed
    since_s: float
    in_place_of: tuple[Reason, str] | None = None
    is_slow: bool = False
    is_over: bool = False


class Restore(Generic[S]):
    """What start-up does with every model. Used by one thread at a time.

    Args:
        slots: where bundles lie.
        journal: the records, empty yet.
        live: what serves, nothing yet.
        limits: seconds that opening a model may take.
        events: where the fleet hears of it.
        changed: called after a change that is not in a record.
        clock: measures how long opening takes.
    """

    def __init__(
        self,
        slots: Slots,
        journal: Journal,
        live: Live[S],
        *,
        limits: UpdateSection,
        events: Events,
        changed: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._journal = journal
        self._live = live
        self._limit_s, self._timeout = update.limit(State.PROBING, limits)
        self._events = events
        self._changed = changed
        self._clock = clock
        self._queue: list[str] = []
        self._openings: dict[str, Opening[S]] = {}
        self._troubles: dict[str, tuple[Reason, str]] = {}
        # When those of which nothing opened are tried again, and how often they were.
        self._later_s: dict[str, float] = {}
        self._tries: dict[str, int] = {}

    def run(self) -> None:
        """Let the active slot of every model serve, or the one before.

        Returns when that is done, or when one model is slow; `go_on` does the rest.
        """
        is_clean = self._slots.take_stop()
        self._slots.tidy()
        asked = self._slots.asked("rollback")
        for model in self._slots.names():
            record = self._journal.read(model)
            started = update.at_start(record, is_clean=is_clean)
            if started != record:
                self._note(model, started)
                self._tell_end(model, record, self._journal.record(model))
            if model in asked:
                self._switch_back(model)
            self._queue.append(model)
        while self.is_busy and not any(one.is_slow for one in self._openings.values()):
            self.go_on(wait_s=_LOOK_S)

    @property
    def is_busy(self) -> bool:
        """Whether there is a model of which it is not known yet whether it will serve."""
        return bool(self._queue) or not all(one.is_over for one in self._openings.values())

    @property
    def is_due(self) -> bool:
        """Whether `go_on` has something to do; from any thread."""
        now_s = self._clock.monotonic()
        return any(at_s <= now_s for at_s in list(self._later_s.values())) or any(
            opening.work.has_ended() for opening in list(self._openings.values())
        )

    def trouble(self, model: str) -> tuple[Reason, str] | None:
        """Why the active slot of a model does not serve; from any thread."""
        return self._troubles.get(model)

    def go_on(self, *, wait_s: float = 0.0) -> None:
        """Show what has opened by now, leave what is over its limit, and begin with the next.

        Args:
            wait_s: for a model that is not slow yet, in seconds.
        """
        for model, opening in list(self._openings.items()):
            if opening.work.has_ended(wait_s=0.0 if opening.is_slow else wait_s):
                del self._openings[model]
                self._finish(model, opening)
            else:
                self._look_at_clock(model, opening)
        for model, at_s in list(self._later_s.items()):
            if at_s <= self._clock.monotonic():
                del self._later_s[model]
                # An update may have brought something that serves.
                if not self._live.serves(model):
                    self._queue.append(model)
        if all(one.is_slow for one in self._openings.values()) and self._queue:
            self._begin(self._queue.pop(0))

    def close(self) -> None:
        """Wait for nothing any more."""
        self._queue.clear()
        self._later_s.clear()
        for opening in self._openings.values():
            self._leave(opening)
        self._openings.clear()

    def _note(self, model: str, started: Record) -> None:
        """Keep how often a state was begun, before it is begun again."""
        try:
            self._journal.write(model, started)
        except StorageError as e:
            log.error("record is not on disk", extra={"model": model, "error": str(e)})
            self._journal.hold(model, _uncounted(started, e))

    def _tell_end(self, model: str, record: Record, started: Record) -> None:
        """What ended an update while nobody was there to tell it."""
        end = started.update
        if end is None or started.state is record.state or end.reason is None:
            return
        kind = "rolled_back" if started.state is State.ROLLED_BACK else "update_failed"
        self._tell(kind, model, end.reason, end.detail or "")

    def _switch_back(self, model: str) -> None:
        """Nothing serves yet: the switch of the record is enough."""
        record = self._journal.record(model)
        if record.previous is None:
            self._tell("rollback_refused", model, Reason.ASKED, "there is no previous version")
        else:
            back = update.rolled_back(record, Reason.ASKED, _ASKED)
            self._journal.write_if_possible(model, back)
            self._tell("rolled_back", model, Reason.ASKED, _ASKED)
        try:
            self._slots.answered(model, "rollback")
        except StorageError as e:
            log.error("request stays", extra={"model": model, "error": str(e)})

    def _begin(self, model: str, *, in_place_of: tuple[Reason, str] | None = None) -> None:
        """Open the active slot of a model, or the one before in its place."""
        record = self._journal.record(model)
        slot = record.active if in_place_of is None else record.previous
        if slot is None:
            return
        held, folder = record.slots[slot], self._slots.folder(model, slot)
        work = Work(
            lambda: self._live.load(folder, digest=held.digest, keys=held.keys, proven=True),
            name=f"start {model}",
        )
        now_s = self._clock.monotonic()
        self._openings[model] = Opening(work, slot, held, now_s, in_place_of=in_place_of)

    def _look_at_clock(self, model: str, opening: Opening[S]) -> None:
        taken_s = self._clock.monotonic() - opening.since_s
        if not opening.is_slow and taken_s >= min(_SLOW_S, self._limit_s * _SLOW_SHARE):
            opening.is_slow = True
            self._live.pass_over(opening.work.thread)
            log.warning("model opens slowly", extra={"model": model, "took_s": round(taken_s, 1)})
        if not opening.is_over and taken_s >= self._limit_s:
            opening.is_over = True
            if self._is_wanted(model, opening):
                detail = f"opening {opening.held.version} took longer than {self._limit_s:g} s"
                self._fail(model, opening, self._timeout, detail)
            if self._openings[model] is not opening:
                self._leave(opening)

    def _finish(self, model: str, opening: Opening[S]) -> None:
        try:
            loaded = opening.work.result()
            if self._is_wanted(model, opening):
                self._show(model, opening, loaded)
            else:
                self._live.discard(loaded)
        except UpdateFailed as e:
            reason, detail = e.reason, str(e)
        except Exception as e:  # the version before may do better; the log has the traceback
            log.error("slot cannot be loaded", extra={"model": model}, exc_info=e)
            reason, detail = Reason.INTERNAL, f"{type(e).__name__}: {e}"
        else:
            return
        if self._is_wanted(model, opening) and not opening.is_over:
            self._fail(model, opening, reason, detail)

    def _is_wanted(self, model: str, opening: Opening[S]) -> bool:
        """Whether it is still the one that shall serve: an update may have brought another."""
        record = self._journal.record(model)
        slot = record.active if opening.in_place_of is None else record.previous
        return slot == opening.slot and record.slots[slot] == opening.held

    def _show(self, model: str, opening: Opening[S], loaded: Loaded[S]) -> None:
        try:
            self._live.show(model, loaded)
        except Exception:
            self._live.discard(loaded)
            raise
        self._troubles.pop(model, None)
        self._tries.pop(model, None)
        if opening.in_place_of is not None:
            self._roll_back(model, *opening.in_place_of)
        if self._journal.record(model).state is not State.ACTIVE:
            # Nothing is on trial: what served before is not gone back to.
            self._live.settle(model)
        self._changed()

    def _leave(self, opening: Opening[S]) -> None:
        self._live.pass_over(opening.work.thread)
        opening.work.leave(self._live.discard)

    def _fail(self, model: str, opening: Opening[S], reason: Reason, detail: str) -> None:
        if model not in self._tries:
            self._tell("slot_failed", model, reason, detail)
        if opening.in_place_of is None:
            self._troubles[model] = reason, detail
            self._fall_back(model, reason, detail)
        else:
            why, before = opening.in_place_of
            self._troubles[model] = why, f"{before}; the version before fails too: {detail}"
            self._try_later(model)

    def _fall_back(self, model: str, reason: Reason, detail: str) -> None:
        record = self._journal.record(model)
        is_damaged, is_on_trial = reason is Reason.SLOT_DAMAGED, record.state is State.ACTIVE
        if record.previous is not None:
            if is_damaged or is_on_trial:
                # It does not come back by itself, or was not to be trusted yet.
                self._roll_back(model, reason, detail)
                self._begin(model)
            else:
                self._begin(model, in_place_of=(reason, detail))
        elif is_damaged:
            self._journal.write_if_possible(model, update.lost(record, detail))
        else:
            if is_on_trial:
                # Nobody can judge what does not serve, and nothing newer begins before that.
                self._journal.write_if_possible(model, update.failed(record, reason, detail))
            self._try_later(model)

    def _roll_back(self, model: str, reason: Reason, detail: str) -> None:
        back = update.rolled_back(self._journal.record(model), reason, detail)
        self._journal.write_if_possible(model, back)
        self._tell("rolled_back", model, reason, detail)

    def _try_later(self, model: str) -> None:
        """Nothing of a model opened; one that is over its limit may still come by itself."""
        tries = self._tries.get(model, 0)
        if model not in self._openings and tries < len(RETRY_S):
            self._tries[model] = tries + 1
            self._later_s[model] = self._clock.monotonic() + RETRY_S[tries]
        self._changed()

    def _tell(self, kind: str, model: str, reason: Reason, detail: str) -> None:
        level: Level = "warning" if kind == "rolled_back" else "error"
        self._events(kind, f"{model}: {detail}", level=level, model=model, reason=reason.value)


def _uncounted(started: Record, error: StorageError) -> Record:
    """What becomes of a start that the disk does not count.

    What may have ended the daemon is not begun again uncounted, or it could do so for ever; what
    served before is. The record on disk stays, and the next start that it can count goes on.
    """
    reason, detail = update.disk_reason(error), f"its start cannot be counted: {error}"
    if started.state in update.REPLACEABLE:
        return update.failed(started, reason, detail)
    if started.state is State.ACTIVE and started.previous is not None:
        return update.rolled_back(started, reason, detail)
    return started
