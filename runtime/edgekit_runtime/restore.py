"""Restore: start-up, from whatever state the daemon ended in, to something that serves."""

from __future__ import annotations

import logging
from typing import Generic, TypeVar

from edgekit.errors import StorageError
from edgekit_runtime import update
from edgekit_runtime.journal import Journal
from edgekit_runtime.live import Live
from edgekit_runtime.slots import Slots
from edgekit_runtime.telemetry import Events, Level
from edgekit_runtime.update import Reason, Record, State, UpdateFailed

log = logging.getLogger(__name__)

S = TypeVar("S")

_ASKED = "asked while the daemon was away"


class Restore(Generic[S]):
    """What start-up does with every model.

    Args:
        slots: where bundles lie.
        journal: the records, empty yet.
        live: what serves, nothing yet.
        events: where the fleet hears of it.
    """

    def __init__(self, slots: Slots, journal: Journal, live: Live[S], *, events: Events) -> None:
        self._slots = slots
        self._journal = journal
        self._live = live
        self._events = events

    def run(self) -> None:
        """Let the active slot of every model serve, or the one before."""
        self._slots.tidy()
        asked = self._slots.asked("rollback")
        for model in self._slots.names():
            record = self._journal.read(model)
            started = update.at_start(record)
            if started != record:
                self._note(model, started)
                self._tell_end(model, record, self._journal.record(model))
            if model in asked:
                self._switch_back(model)
            self._show(model)

    def _note(self, model: str, started: Record) -> None:
        """Keep how often a state was begun, before it is begun again."""
        try:
            self._journal.write(model, started)
        except StorageError as e:
            if started.state in update.REPLACEABLE:
                # What may have ended the daemon is not begun again without being counted.
                started = update.failed(started, update.disk_reason(e), str(e))
            log.error("record is not on disk", extra={"model": model, "error": str(e)})
            self._journal.hold(model, started)

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

    def _show(self, model: str) -> None:
        record = self._journal.record(model)
        if record.active is None:
            return
        try:
            held = record.slots[record.active]
            loaded = self._live.load(
                self._slots.folder(model, record.active),
                digest=held.digest,
                keys=held.keys,
                proven=True,
            )
        except UpdateFailed as e:
            self._fall_back(model, record, e.reason, str(e))
            return
        except Exception as e:  # the version before may do better; the log has the traceback
            log.exception("slot cannot be loaded", extra={"model": model})
            self._fall_back(model, record, Reason.INTERNAL, f"{type(e).__name__}: {e}")
            return
        self._live.show(model, loaded)
        if record.state is not State.ACTIVE:
            # Nothing is on trial: what served before is not gone back to.
            self._live.settle(model)

    def _fall_back(self, model: str, record: Record, reason: Reason, detail: str) -> None:
        self._tell("slot_failed", model, reason, detail)
        if record.previous is not None:
            back = update.rolled_back(record, reason, detail)
            self._journal.write_if_possible(model, back)
            self._tell("rolled_back", model, reason, detail)
            self._show(model)
        elif reason is Reason.SLOT_DAMAGED:
            self._journal.write_if_possible(model, update.lost(record, detail))
        elif record.state is State.ACTIVE:
            # Nobody can judge what does not serve, and nothing newer begins before that.
            self._journal.write_if_possible(model, update.failed(record, reason, detail))

    def _tell(self, kind: str, model: str, reason: Reason, detail: str) -> None:
        level: Level = "warning" if kind == "rolled_back" else "error"
        self._events(kind, f"{model}: {detail}", level=level, model=model, reason=reason.value)
