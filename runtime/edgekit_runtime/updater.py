"""Updater: takes each model from what serves to what is wanted. The shell around `update`.

One thread does it, so that two updates never share the board's disk and memory. Promise: a record
is on disk before it is acted on, and what serves is changed by nothing but `Live.show`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Generic, TypeVar

from edgekit.bundle import Bundle
from edgekit.errors import StorageError
from edgekit.messages import Desired, ModelState
from edgekit.signing import PublicKey
from edgekit_runtime import update
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.fetch import Fetcher, Interrupted, check
from edgekit_runtime.live import Live, Loaded, failing_with_reason
from edgekit_runtime.slots import Slots
from edgekit_runtime.telemetry import Events, Level
from edgekit_runtime.update import Reason, Record, State, Update, UpdateFailed

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")

POLL_S = 2.0
JUDGE_S = 0.25
RETRY_S = 30.0
_PROGRESS_STEP = 0.05
_ASKED = "asked on this device"


class Updater(Generic[S]):
    """Everything about installed models.

    Args:
        slots: where bundles lie.
        live: what serves.
        desired: what is wanted.
        profile: of this device.
        keys: who may sign.
        limits: seconds a state may take, and when a version counts as good.
        fetcher: how bundles come here; `None` without a fleet.
        events: where the fleet hears of it.
        changed: called after each change that the fleet should see.
    """

    def __init__(
        self,
        slots: Slots,
        live: Live[S],
        desired: DesiredState,
        *,
        profile: str,
        keys: Sequence[PublicKey],
        limits: UpdateSection,
        fetcher: Fetcher | None,
        events: Events,
        changed: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._live = live
        self._desired = desired
        self._profile = profile
        self._keys = keys
        self._limits = limits
        self._fetcher = fetcher
        self._events = events
        self._changed = changed
        self._records: dict[str, Record] = {}
        self._progress: dict[str, float] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="update", daemon=True)
        self._steps: dict[State, Callable[[str, Record, Update], bool]] = {
            State.FETCHING: self._fetch,
            State.VERIFYING: self._verify,
            State.STAGED: self._stage,
            State.PROBING: self._probe,
            State.ACTIVE: self._judge,
        }

    def start(self) -> None:
        """Work on what is wanted; `restore` comes first."""
        self._thread.start()

    def close(self, *, timeout_s: float) -> None:
        """End after the step that is being done; the next start goes on from its record."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)

    def want(self, desired: Desired) -> None:
        """Take a desired state, from any thread."""
        if self._desired.offer(desired):
            self._wake.set()

    def states(self) -> dict[str, ModelState]:
        """What the fleet is told of each model."""
        return {
            model: update.model_state(
                record,
                serves=self._live.active(model) is not None,
                progress=self._progress.get(model),
            )
            for model, record in sorted(dict(self._records).items())
        }

    def restore(self) -> None:
        """Start-up: let the active slot of every model serve, or the one before."""
        self._slots.tidy()
        for model in self._slots.names():
            self._records[model] = self._slots.read(model)
            started = update.at_start(self._record(model))
            if started != self._record(model):
                self._write_if_possible(model, started)
            if model in self._slots.asked_rollbacks():
                self._switch_back(model)
            self._restore(model)

    def turn(self) -> float:
        """Do everything that can be done now; returns seconds until the next look."""
        taken = self._desired.take()
        for model in self._slots.asked_rollbacks():
            self._go_back_as_asked(model)
        for model in sorted(self._desired.models):
            self._begin(model)
        if taken:
            # Only now: who reads the new serial sees no outcome of an older wish beside it.
            self._changed()
        for model in sorted(self._records):
            while self._step(model) and not self._stops(0.0):
                pass
        if self._fetcher is not None:
            self._fetcher.tidy(self._parts_in_use())
        is_judging = any(record.state is State.ACTIVE for record in self._records.values())
        return JUDGE_S if is_judging else POLL_S

    def _run(self) -> None:
        while not self._stopping:
            try:
                wait_s = self.turn()
            except StorageError as e:
                log.error("update waits for the disk", extra={"error": str(e)})
                wait_s = RETRY_S
            except Exception:  # the daemon goes on serving; the log has the traceback
                log.exception("update turn failed")
                wait_s = RETRY_S
            self._wake.wait(wait_s)
            self._wake.clear()

    def _begin(self, model: str) -> None:
        wanted = self._desired.models.get(model)
        if wanted is None:
            return
        begun = update.begin(self._record(model), serial=self._desired.serial, wanted=wanted)
        if begun is not None:
            self._write(model, begun)

    def _step(self, model: str) -> bool:
        """Act on the present state; `True` where the next one can be acted on at once."""
        record = self._record(model)
        step = self._steps.get(record.state)
        if step is None or record.update is None:
            return False
        try:
            return step(model, record, record.update)
        except Interrupted:
            return False
        except UpdateFailed as e:
            self._fail(model, e.reason, str(e))
        except StorageError as e:
            if record.state is State.ACTIVE:
                # It serves, and the disk is not its fault: the verdict waits.
                raise
            self._fail(model, Reason.DISK_FULL, str(e))
        except Exception as e:  # this update ends; the daemon goes on serving
            log.exception("update step failed", extra={"model": model})
            self._fail(model, Reason.INTERNAL, f"{type(e).__name__}: {e}")
        return False

    def _fetch(self, model: str, record: Record, wish: Update) -> bool:
        if not update.holds_wanted(record):
            if self._fetcher is None:
                return False
            self._fetcher.fetch(
                wish.wanted,
                limit_s=self._limits.fetch_limit_s,
                progress=lambda done: self._advance(model, done),
                wait=self._stops,
            )
        self._progress.pop(model, None)
        self._write(model, update.move(record, State.VERIFYING))
        return True

    def _verify(self, model: str, record: Record, wish: Update) -> bool:
        if update.holds_wanted(record):
            self._write(model, update.staged(record))
            return True
        if self._fetcher is None:
            return False
        part = self._fetcher.part(wish.wanted)
        try:
            check(part, wish.wanted)
        except UpdateFailed:
            if wish.downloads >= update.MAX_DOWNLOADS:
                raise
            self._write(model, update.again(record))
            return True
        record = update.cleared(record, record.free)
        self._write(model, record)
        self._bounded(State.VERIFYING, lambda: self._unpack(model, record, part))
        self._write(model, update.staged(record))
        return True

    def _unpack(self, model: str, record: Record, part: Path) -> None:
        with failing_with_reason(), Bundle.open(part) as bundle:
            update.check(record, bundle.manifest, bundle.digest, model=model, profile=self._profile)
            bundle.verify(self._keys)
            self._slots.clear(model, record.free)
            self._slots.install(model, record.free, bundle)

    def _stage(self, model: str, record: Record, wish: Update) -> bool:
        if self._fetcher is not None:
            self._fetcher.part(wish.wanted).unlink(missing_ok=True)
        self._write(model, update.move(record, State.PROBING))
        return True

    def _probe(self, model: str, record: Record, wish: Update) -> bool:
        folder = self._slots.folder(model, wish.slot or record.free)
        loaded = self._bounded(
            State.PROBING, lambda: self._live.load(folder), late=self._live.discard
        )
        self._switch(model, update.activated(record), loaded)
        return True

    def _judge(self, model: str, record: Record, wish: Update) -> bool:
        failures = self._live.engine_failures(model)
        verdict = update.judge(
            engine_failures=failures,
            served_s=self._live.served_s(model),
            allowed_failures=self._limits.max_engine_failures,
            confirm_after_s=self._limits.confirm_after_s,
        )
        if verdict is State.CONFIRMED:
            self._write(model, update.move(record, State.CONFIRMED))
            self._live.settle(model)
            version = wish.wanted.version
            self._events("update_confirmed", f"{model} {version}", model=model, version=version)
        elif verdict is State.ROLLED_BACK:
            self._go_back(model, Reason.ENGINE_FAILURES, f"the engine failed {failures} times")
        return False

    def _go_back(self, model: str, reason: Reason, detail: str) -> None:
        """Take the previous version, open still or loaded anew, and only then leave the present."""
        record = self._record(model)
        if record.previous is None:
            raise UpdateFailed(reason, f"{detail}; there is no version to go back to")
        folder = self._slots.folder(model, record.previous)
        try:
            loaded = self._live.kept(model, folder) or self._live.load(folder)
        except UpdateFailed as e:
            raise UpdateFailed(reason, f"{detail}; the previous version fails: {e}") from e
        self._switch(model, update.rolled_back(record, reason, detail), loaded)
        self._tell("rolled_back", model, reason, detail)

    def _go_back_as_asked(self, model: str) -> None:
        try:
            self._go_back(model, Reason.ASKED, _ASKED)
        except UpdateFailed as e:
            self._tell("rollback_refused", model, e.reason, str(e))
        self._slots.answered(model)

    def _switch_back(self, model: str) -> None:
        """At start-up nothing serves yet: the switch is enough."""
        record = self._record(model)
        if record.previous is None:
            self._tell("rollback_refused", model, Reason.ASKED, "there is no previous version")
        else:
            self._write_if_possible(model, update.rolled_back(record, Reason.ASKED, _ASKED))
            self._tell("rolled_back", model, Reason.ASKED, _ASKED)
        self._slots.answered(model)

    def _restore(self, model: str) -> None:
        record = self._record(model)
        if record.active is None:
            return
        try:
            self._show(model, self._live.load(self._slots.folder(model, record.active)))
        except UpdateFailed as e:
            self._fall_back(model, record, e.reason, str(e))
        except Exception as e:  # the version before may do better; the log has the traceback
            log.exception("slot cannot be loaded", extra={"model": model})
            self._fall_back(model, record, Reason.INTERNAL, f"{type(e).__name__}: {e}")

    def _fall_back(self, model: str, record: Record, reason: Reason, detail: str) -> None:
        self._tell("slot_failed", model, reason, detail)
        if record.previous is not None:
            self._write_if_possible(model, update.rolled_back(record, reason, detail))
            self._tell("rolled_back", model, reason, detail)
            self._restore(model)
        elif reason is Reason.SLOT_DAMAGED:
            self._write_if_possible(model, update.lost(record, detail))

    def _switch(self, model: str, record: Record, loaded: Loaded[S]) -> None:
        """Let another version serve, once the record says so."""
        try:
            self._write(model, record)
        except StorageError:
            self._live.discard(loaded)
            raise
        self._show(model, loaded)

    def _show(self, model: str, loaded: Loaded[S]) -> None:
        self._live.show(model, loaded)
        if self._record(model).state is not State.ACTIVE:
            # Nothing is on trial: what served before is not gone back to.
            self._live.settle(model)
        self._changed()

    def _fail(self, model: str, reason: Reason, detail: str) -> None:
        self._progress.pop(model, None)
        record = update.failed(self._record(model), reason, detail)
        self._write(model, record)
        # Else what was staged takes the room that the next download needs.
        self._slots.clear_unnamed(model, record)
        self._tell("update_failed", model, reason, detail)

    def _tell(self, kind: str, model: str, reason: Reason, detail: str) -> None:
        level: Level = "warning" if kind == "rolled_back" else "error"
        self._events(kind, f"{model}: {detail}", level=level, model=model, reason=reason.value)

    def _bounded(
        self, state: State, work: Callable[[], T], *, late: Callable[[T], None] | None = None
    ) -> T:
        """Run `work` in a thread of its own and wait no longer than the state's limit.

        An engine that hangs cannot be stopped from outside: its thread is left alone, and the
        version that serves goes on. Should it end after all, `late` takes what came of it.
        """
        limit_s, timeout = update.limit(state, self._limits)
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                outcome.set_result(work())
            except BaseException as e:  # noqa: BLE001 - raised again where it is waited for
                outcome.set_exception(e)

        threading.Thread(target=run, name=f"update-{state.value}", daemon=True).start()
        wait([outcome], limit_s)
        if not outcome.done():
            if late is not None:
                outcome.add_done_callback(lambda done: done.exception() or late(done.result()))
            raise UpdateFailed(timeout, f"{state.value} took longer than {limit_s:g} s")
        return outcome.result()

    def _stops(self, wait_s: float) -> bool:
        """Wait, and say whether to stop: the daemon ends, or something else is wanted."""
        if wait_s and self._wake.wait(wait_s):
            # A wake for a wish that was taken already must not cut every later wait short.
            self._wake.clear()
        stops = self._stopping or self._desired.is_offered
        if stops:
            self._wake.set()
        return stops

    def _parts_in_use(self) -> set[str]:
        wishes = [r.update for r in self._records.values() if r.state in update.REPLACEABLE]
        return {wish.wanted.sha256 for wish in wishes if wish is not None}

    def _advance(self, model: str, done: float) -> None:
        if done - self._progress.get(model, 0.0) >= _PROGRESS_STEP:
            self._progress[model] = done
            self._changed()

    def _record(self, model: str) -> Record:
        return self._records.get(model, Record())

    def _write(self, model: str, record: Record) -> None:
        """Disk first: what the memory says is durable."""
        self._slots.write(model, record)
        self._records[model] = record
        log.info("update state", extra={"model": model, "state": record.state.value})
        self._changed()

    def _write_if_possible(self, model: str, record: Record) -> None:
        """At start-up something must serve, also from a disk that takes nothing any more."""
        try:
            self._write(model, record)
        except StorageError as e:
            log.error("record is not on disk", extra={"model": model, "error": str(e)})
            self._records[model] = record
