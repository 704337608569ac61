"""Steps: what the device does in each state of an update, once the state is on disk.

Promise: a step ends with the record of the next state on disk, or raises, and then the record is
still that of its own state. What serves is changed by nothing but `Live.show`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from edgekit.bundle import Bundle
from edgekit.clock import Clock
from edgekit.errors import StorageError
from edgekit.signing import PublicKey
from edgekit_runtime import update
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.fetch import Wait, check
from edgekit_runtime.journal import Journal
from edgekit_runtime.live import Live, Loaded, failing_with_reason, public_keys
from edgekit_runtime.requests import Requests
from edgekit_runtime.slots import Slots
from edgekit_runtime.source import Source
from edgekit_runtime.telemetry import Events, Level
from edgekit_runtime.trials import Trials
from edgekit_runtime.update import Reason, Record, State, Update, UpdateFailed
from edgekit_runtime.update_fetch import Fetching
from edgekit_runtime.update_limits import Deadlines

S = TypeVar("S")

_PROGRESS_STEP = 0.05
# What is on disk of a download's progress; each write is a page or two of flash.
_DURABLE_STEP = 0.1


class Steps(Generic[S]):
    """The work of the update thread.

    Args:
        slots: where bundles lie.
        requests: what people want.
        journal: the records.
        live: what serves.
        profile: of this device.
        keys: who may sign.
        limits: seconds a state may take, and when a version counts as good.
        source: how bundles come here; `None` without a fleet.
        events: where the fleet hears of it.
        changed: called after a change that is not in a record.
        wait: waits for a number of seconds, and says whether a download shall make way.
        is_stopping: whether the daemon ends.
        clock: measures how long a state takes.
    """

    def __init__(
        self,
        slots: Slots,
        requests: Requests,
        journal: Journal,
        live: Live[S],
        *,
        profile: str,
        keys: Sequence[PublicKey],
        limits: UpdateSection,
        source: Source | None,
        events: Events,
        changed: Callable[[], None],
        wait: Wait,
        is_stopping: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._journal = journal
        self._live = live
        self._profile = profile
        self._keys = keys
        self._limits = limits
        self._source = source
        self._events = events
        self._changed = changed
        self._trials: Trials[S] = Trials(live)
        self._within = Deadlines(
            limits, requests, is_stopping=is_stopping, left=live.pass_over, clock=clock
        )
        self._fetching: Fetching | None = None
        if source is not None:
            self._fetching = Fetching(
                slots, journal, source, limits=limits, wait=wait, advance=self._advance, clock=clock
            )
        self._progress: dict[str, float] = {}
        self._table: dict[State, Callable[[str, Record, Update], bool]] = {
            State.FETCHING: self._fetch,
            State.VERIFYING: self._verify,
            State.STAGED: self._stage,
            State.PROBING: self._probe,
            State.CANARY: self._compare,
            State.ACTIVE: self._judge,
        }

    def do(self, model: str) -> bool:
        """Act on the present state; `True` where the next one can be acted on at once.

        Raises:
            UpdateFailed: the update cannot go on.
            Interrupted: it was asked to stop, and goes on later.
            StorageError: the disk does not take the next record.
        """
        record = self._journal.record(model)
        step = self._table.get(record.state)
        if step is None or record.update is None:
            return False
        return step(model, record, record.update)

    def is_due(self, model: str) -> bool:
        """Whether a trial has come to something, so that `do` would not be in vain."""
        state = self._journal.record(model).state
        if state is State.ACTIVE:
            return self._verdict(model) is not None
        if state is not State.CANARY:
            return False
        trial = self._trials.find(model)
        if trial is None or self._trials.is_past(model) or trial.verdict() is not None:
            return True
        return self._is_far(model, trial.progress())

    def progress(self, model: str) -> float | None:
        """How far the present state is, where it can tell."""
        return self._progress.get(model)

    @property
    def is_overdue(self) -> bool:
        """Whether work goes on that nobody waits for any more; from any thread."""
        return self._within.is_overdue

    def drop(self, model: str) -> None:
        """Give up what was loaded for an update that is over."""
        self._progress.pop(model, None)
        self._trials.drop(model)

    def close(self) -> None:
        """Give up whatever was loaded and does not serve; how long it was tried stays on disk."""
        for model, trial in self._trials:
            self._keep_time(model, trial.progress(), trial.spent_s)
        self._trials.close()

    def go_back(self, model: str, reason: Reason, detail: str) -> None:
        """Take the previous version, open still or loaded anew, and only then leave the present."""
        record = self._journal.record(model)
        if record.previous is None:
            raise UpdateFailed(reason, f"{detail}; there is no version to go back to")
        folder = self._slots.folder(model, record.previous)
        held = record.slots[record.previous]
        kept = self._live.kept(model, folder)
        try:
            loaded = kept or self._within.run(
                model,
                State.PROBING,
                lambda: self._live.load(folder, digest=held.digest, keys=held.keys, proven=True),
                late=self._live.discard,
                can_cancel=False,
            )
        except UpdateFailed as e:
            raise UpdateFailed(reason, f"{detail}; the previous version fails: {e}") from e
        back = update.rolled_back(record, reason, detail)
        if back.state not in update.REPLACEABLE:
            self.drop(model)
        try:
            self._live.show(model, loaded)
        except Exception as e:
            if kept is None:
                self._live.discard(loaded)
            raise UpdateFailed(reason, f"{detail}; the previous version fails: {e}") from e
        # A disk that takes nothing any more must not keep what is worse serving.
        self._journal.write_if_possible(model, back)
        self._shown(model, back)
        self.tell("rolled_back", model, reason, detail)

    def fail(self, model: str, reason: Reason, detail: str) -> None:
        """The update ends; what serves goes on serving."""
        self.drop(model)
        record = update.failed(self._journal.record(model), reason, detail)
        self._give_up(model, record)
        self.tell("update_failed", model, reason, detail)

    def tell(self, kind: str, model: str, reason: Reason, detail: str, **figures: float) -> None:
        """Let the fleet hear of an end, with its reason code."""
        level: Level = "warning" if kind == "rolled_back" else "error"
        if reason is Reason.CANCELLED:
            level = "info"
        self._events(
            kind, f"{model}: {detail}", level=level, model=model, reason=reason.value, **figures
        )

    def _fetch(self, model: str, record: Record, wish: Update) -> bool:
        keys: tuple[str, ...] = ()
        if not update.holds_wanted(record):
            if self._fetching is None:
                return False
            keys = self._fetching.bring(model, record, wish)
        self._progress.pop(model, None)
        self._journal.write(model, update.fetched(self._journal.record(model), keys=keys))
        return True

    def _verify(self, model: str, record: Record, wish: Update) -> bool:
        if update.holds_wanted(record):
            self._journal.write(model, update.staged(record))
            return True
        if self._source is None:
            return False
        part = self._source.part(wish.wanted)
        try:
            check(part, wish.wanted)
        except UpdateFailed:
            if wish.downloads >= update.MAX_DOWNLOADS:
                raise
            self._journal.write(model, update.again(record))
            return True
        bundle = self._within.run(
            model,
            State.VERIFYING,
            lambda: self._examine(model, record, wish, part),
            late=Bundle.close,
        )
        # Only now: what would be refused must not cost the version to go back to.
        record = update.cleared(record, record.free)
        try:
            self._journal.write(model, record)
            self._slots.clear(model, record.free)
        except BaseException:
            bundle.close()
            raise
        unpacked = self._within.run(
            model,
            State.VERIFYING,
            lambda: self._unpack(model, bundle),
            late=self._slots.give_up,
        )
        self._slots.put(model, record.free, unpacked)
        self._journal.write(model, update.staged(record))
        return True

    def _examine(self, model: str, record: Record, wish: Update, part: Path) -> Bundle:
        """The bundle, open, if it is whole, what was announced, and signed by whom it must be."""
        with failing_with_reason():
            bundle = Bundle.open(part)
            try:
                update.check(
                    record, bundle.manifest, bundle.digest, model=model, profile=self._profile
                )
                bundle.verify([*self._keys, *public_keys(wish.keys)])
            except BaseException:
                bundle.close()
                raise
            return bundle

    def _unpack(self, model: str, bundle: Bundle) -> Path:
        """Beside the slots: one that is late must not touch what lies there by then."""
        with failing_with_reason(), bundle:
            return self._slots.unpack(model, bundle)

    def _stage(self, model: str, record: Record, wish: Update) -> bool:
        if self._source is not None:
            self._source.forget(wish.wanted)
        self._journal.write(model, update.move(record, State.PROBING))
        return True

    def _probe(self, model: str, record: Record, wish: Update) -> bool:
        slot = wish.slot or record.free
        folder, held = self._slots.folder(model, slot), record.slots[slot]
        loaded = self._within.run(
            model,
            State.PROBING,
            lambda: self._live.load(folder, digest=held.digest, keys=held.keys),
            late=self._live.discard,
        )
        if not self._live.can_try(model):
            self._switch(model, record, update.activated(record), loaded)
            return True
        try:
            self._journal.write(model, update.move(record, State.CANARY))
        except StorageError:
            self._live.discard(loaded)
            raise
        self._trials.begin(model, loaded, spent_s=wish.spent_s)
        return True

    def _compare(self, model: str, record: Record, wish: Update) -> bool:
        trial = self._trials.find(model)
        if trial is None:
            # Another wish ended it, and was taken back: what was loaded is loaded once more.
            self._journal.write(model, update.move(record, State.PROBING))
            return True
        if self._trials.is_past(model):
            # A model that was reloaded is another object, which the trial does not hear.
            self._trials.go_on(model)
            return False
        verdict = trial.verdict()
        if verdict is None:
            if self._advance(model, trial.progress()):
                self._keep_time(model, trial.progress(), trial.spent_s)
            return False
        self._progress.pop(model, None)
        if verdict.decision == "roll_back":
            reason = verdict.reason or Reason.INTERNAL
            self._trials.drop(model)
            self._give_up(
                model,
                update.judged_worse(record, reason, verdict.detail, figures=verdict.figures),
            )
            self.tell("rolled_back", model, reason, verdict.detail, **verdict.figures)
            return False
        loaded = self._trials.take(model)
        after = update.activated(update.measured(record, verdict.figures))
        self._switch(model, record, after, loaded)
        version = wish.wanted.version
        facts: dict[str, Any] = {"model": model, "version": version, **verdict.figures}
        kind = "canary_passed" if verdict.decision == "promote" else "canary_undecided"
        self._events(kind, f"{model} {version}: {verdict.detail}", **facts)
        return True

    def _judge(self, model: str, record: Record, wish: Update) -> bool:
        verdict = self._verdict(model)
        if verdict is State.CONFIRMED:
            self._journal.write(model, update.move(record, State.CONFIRMED))
            self._live.settle(model)
            version = wish.wanted.version
            self._events("update_confirmed", f"{model} {version}", model=model, version=version)
        elif verdict is State.ROLLED_BACK:
            failures = self._live.engine_failures(model)
            self.go_back(model, Reason.ENGINE_FAILURES, f"the engine failed {failures} times")
        return False

    def _verdict(self, model: str) -> State | None:
        return update.judge(
            engine_failures=self._live.engine_failures(model),
            served_s=self._live.served_s(model),
            allowed_failures=self._limits.max_engine_failures,
            confirm_after_s=self._limits.confirm_after_s,
        )

    def _give_up(self, model: str, record: Record) -> None:
        """An update has ended, and what it had staged goes."""
        # A disk that takes nothing any more is a reason, and must not keep the fleet from it.
        if self._journal.write_if_possible(model, record):
            # Else what was staged takes the room that the next download needs.
            self._slots.clear_unnamed(model, record)

    def _switch(self, model: str, before: Record, after: Record, loaded: Loaded[S]) -> None:
        """Let another version serve, once the record says so; it says what was where that fails."""
        try:
            self._journal.write(model, after)
        except StorageError:
            self._live.discard(loaded)
            raise
        try:
            self._live.show(model, loaded)
        except Exception:
            self._live.discard(loaded)
            self._journal.write_if_possible(model, before)
            raise
        self._shown(model, after)

    def _shown(self, model: str, record: Record) -> None:
        if record.state is not State.ACTIVE:
            # Nothing is on trial: what served before is not gone back to.
            self._live.settle(model)
        self._changed()

    def _keep_time(self, model: str, done: float, spent_s: float) -> None:
        """Keep on disk how long a canary took; a disk that is full then does not end it."""
        record = update.advanced(self._journal.record(model), progress=done, spent_s=spent_s)
        self._journal.write_if_possible(model, record)

    def _advance(self, model: str, done: float) -> bool:
        """Tell how far a state is; whether that is far enough to be kept on disk, too."""
        if not self._is_far(model, done):
            return False
        self._progress[model] = done
        self._changed()
        wish = self._journal.record(model).update
        return wish is not None and abs(done - wish.progress) >= _DURABLE_STEP

    def _is_far(self, model: str, done: float) -> bool:
        """Whether that is news. Back, too: a delta may have been of no use."""
        return abs(done - self._progress.get(model, 0.0)) >= _PROGRESS_STEP
