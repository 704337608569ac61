"""Fetching: the first state of an update, in which its bundle comes here.

Promise: the time that a download took counts, whatever interrupts it. It is on disk when the
download makes way or the daemon ends in good order, and else each quarter of an hour, which is what
a kill costs. Hours outside the window do not count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from edgekit.clock import Clock
from edgekit_runtime import update
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.fetch import Hours, Interrupted, Wait
from edgekit_runtime.fetch.window import Window
from edgekit_runtime.journal import Journal
from edgekit_runtime.slots import Slots
from edgekit_runtime.source import Source
from edgekit_runtime.update import Record, Update

NOTE_S = 900.0
# Less is not worth a write.
_LEAST_S = 1.0


class Fetching:
    """Brings bundles, one at a time. Used by the update thread.

    Args:
        slots: where a delta's base lies.
        journal: the records.
        source: where bundles come from.
        limits: how long that may take, and within which hours.
        wait: waits for a number of seconds, and says whether the download shall make way.
        advance: hears of a model's share; says whether that is far enough to be kept on disk.
        clock: measures.
    """

    def __init__(
        self,
        slots: Slots,
        journal: Journal,
        source: Source,
        *,
        limits: UpdateSection,
        wait: Wait,
        advance: Callable[[str, float], bool],
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._journal = journal
        self._source = source
        self._limit_s = limits.fetch_limit_s
        self._window = None if limits.window is None else Window.parse(limits.window)
        self._wait = wait
        self._advance = advance
        self._clock = clock

    def bring(self, model: str, record: Record, wish: Update) -> tuple[str, ...]:
        """Bring the bundle of a wish; the keys (PEM) of which one must have signed it.

        Raises:
            UpdateFailed: it cannot be had, or the time is over.
            Interrupted: it made way; what is here of it, and the time that it took, are kept.
            StorageError: the disk takes no more.
        """
        hours = Hours(self._window, clock=self._clock, wait=self._wait)
        begun_s, thread = self._clock.monotonic(), threading.current_thread()

        def spent_s() -> float:
            return wish.spent_s + self._clock.monotonic() - begun_s - hours.closed_s

        def wait(seconds: float) -> bool:
            stops = hours.wait(seconds)
            # Whoever else asks whether to stop does not write records.
            if threading.current_thread() is thread:
                self._note(model, spent_s(), least_s=NOTE_S)
            return stops

        def came(done: float) -> None:
            if self._advance(model, done):
                now = self._journal.record(model)
                later = update.advanced(now, progress=done, spent_s=spent_s())
                self._journal.write(model, later)

        try:
            return self._source.fetch(
                wish.wanted,
                base=self._base(model, record),
                frees_bytes=self._slots.size(model, record.free),
                limit_s=max(0.0, self._limit_s - wish.spent_s),
                progress=came,
                wait=wait,
            )
        except Interrupted:
            self._note(model, spent_s(), least_s=_LEAST_S)
            raise

    def _note(self, model: str, spent_s: float, *, least_s: float) -> None:
        """Keep how long it took; a disk that is full then does not end it."""
        record = self._journal.record(model)
        wish = record.update
        if wish is not None and spent_s - wish.spent_s >= least_s:
            later = update.advanced(record, progress=wish.progress, spent_s=spent_s)
            self._journal.write_if_possible(model, later)

    def _base(self, model: str, record: Record) -> tuple[Path, str] | None:
        """What a delta can be against: the slot that serves, and its digest."""
        if record.active is None or record.serving is None:
            return None
        return self._slots.folder(model, record.active), record.serving.digest
