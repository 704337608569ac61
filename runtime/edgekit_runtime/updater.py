"""Updater: takes each model from what serves to what is wanted. The shell around `update`.

One thread does it, so that two updates never share the board's disk and memory. Promise: a record
is on disk before it is acted on, and what serves is changed by nothing but `Live.show`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from edgekit.clock import Clock
from edgekit.errors import StorageError, UsageError
from edgekit.messages import Desired, ModelState
from edgekit.signing import PublicKey
from edgekit_runtime import update
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.fetch import Interrupted
from edgekit_runtime.journal import Journal
from edgekit_runtime.live import Live
from edgekit_runtime.requests import Requests
from edgekit_runtime.restore import Restore
from edgekit_runtime.slots import Request, Slots
from edgekit_runtime.source import Source
from edgekit_runtime.telemetry import Events
from edgekit_runtime.update import Reason, Record, State, UpdateFailed
from edgekit_runtime.update_steps import Steps

log = logging.getLogger(__name__)

S = TypeVar("S")

POLL_S = 2.0
JUDGE_S = 0.25
RETRY_S = 30.0
_ASKED = "asked on this device or by the fleet"


class Updater(Generic[S]):
    """Everything about installed models.

    Args:
        slots: where bundles lie.
        live: what serves.
        desired: what is wanted.
        profile: of this device.
        keys: who may sign.
        limits: seconds a state may take, and when a version counts as good.
        source: how bundles come here; `None` without a fleet.
        events: where the fleet hears of it.
        changed: called after each change that the fleet should see.
        clock: measures how long a state takes.
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
        source: Source | None,
        events: Events,
        changed: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._live = live
        self._desired = desired
        self._source = source
        self._events = events
        self._changed = changed
        self._clock = clock
        self._requests = Requests(slots)
        self._journal = Journal(slots, changed=changed)
        self._restore: Restore[S] = Restore(
            slots, self._journal, live, limits=limits, events=events, changed=changed, clock=clock
        )
        self._steps: Steps[S] = Steps(
            slots,
            self._requests,
            self._journal,
            live,
            profile=profile,
            keys=keys,
            limits=limits,
            source=source,
            events=events,
            changed=changed,
            wait=self._makes_way,
            is_stopping=lambda: self._stopping,
            clock=clock,
        )
        self._wake = threading.Event()
        self._stopping = False
        self._look_s = 0.0
        self._found_due = False
        self._serving: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="update", daemon=True)

    def start(self) -> None:
        """Work on what is wanted; `restore` comes first."""
        self._thread.start()

    def close(self, *, timeout_s: float) -> None:
        """End after the step that is being done; the next start goes on from its record."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._restore.close()
            self._steps.close()

    @property
    def is_alive(self) -> bool:
        """Whether the update thread still runs."""
        return self._thread.is_alive()

    @property
    def is_overdue(self) -> bool:
        """Whether an engine is still busy with something whose time limit is over."""
        return self._steps.is_overdue

    def want(self, desired: Desired) -> None:
        """Take a desired state, from any thread."""
        if self._desired.offer(desired):
            self._wake.set()

    def cancel(self, model: str) -> None:
        """End the update of a model that is under way, from any thread.

        It is wanted until it is done, `withdraw` is called, or the daemon ends.

        Raises:
            UsageError: none is, or it serves already.
        """
        if self._journal.record(model).state not in update.REPLACEABLE:
            raise UsageError(f"no update of {model!r} is under way that could be cancelled")
        self._requests.ask(model, "cancel")
        self._wake.set()

    def rollback(self, model: str) -> None:
        """Go back to the version of a model that served before, from any thread.

        It is wanted until it is done, `withdraw` is called, or the daemon ends.

        Raises:
            UsageError: there is none.
        """
        if self._journal.record(model).previous is None:
            raise UsageError(f"{model!r} has no version to go back to")
        self._requests.ask(model, "rollback")
        self._wake.set()

    def withdraw(self, model: str, request: Request) -> bool:
        """Want it no more, from any thread; `False` where it was begun and may yet be done."""
        return self._requests.withdraw(model, request)

    def states(self) -> dict[str, ModelState]:
        """What the fleet is told of each model."""
        return {
            model: update.model_state(
                record,
                serves=self._live.serves(model),
                progress=self._steps.progress(model),
                trouble=self._restore.trouble(model),
            )
            for model, record in self._journal.items()
        }

    def restore(self) -> None:
        """Start-up: let the active slot of every model serve, or the one before.

        Returns when that is done, or when one takes long; `turn` does the rest before all else.
        """
        self._restore.run()
        updates = [self._journal.record(model).update for model in self._journal]
        self._desired.remember(max((one.serial for one in updates if one is not None), default=0))

    def turn(self) -> float:
        """Do everything that can be done now; returns seconds until the next look."""
        self._found_due = False
        self._restore.go_on()
        if self._restore.is_busy:
            # What is opened for an update would wait behind it, and be compared with nothing.
            return JUDGE_S
        try:
            self._hear()
        except StorageError:
            # An engine that fails must not serve on because a disk takes no wish.
            for model, record in self._journal.items():
                if record.state is State.ACTIVE:
                    self._work(model)
            raise
        refused = [self._work(model) for model in self._by_urgency()]
        self._tell_serving()
        if self._source is not None:
            self._source.tidy(self._parts_in_use())
        for error in filter(None, refused):
            raise error
        return self._pause_s()

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

    def _hear(self) -> None:
        """Take up what the fleet and people on the board want."""
        taken = self._take()
        for model in self._requests.asked("cancel"):
            self._cancel_as_asked(model)
        for model in self._requests.asked("rollback"):
            self._go_back_as_asked(model)
        for model in sorted(self._desired.models):
            self._begin(model)
        if taken:
            # Only now: who reads the new serial sees no outcome of an older wish beside it.
            self._changed()

    def _work(self, model: str) -> StorageError | None:
        """Do what can be done for one model; what the disk refuses it stops no other."""
        try:
            while self._step(model) and not self._is_asked():
                pass
        except StorageError as e:
            return e
        return None

    def _by_urgency(self) -> list[str]:
        """Models in the order of their turn: a download, which may take hours, comes last."""

        def is_download(model: str) -> bool:
            return self._journal.record(model).state is State.FETCHING

        return sorted(self._journal, key=is_download)

    def _take(self) -> bool:
        """Take what is wanted; what cannot be remembered is refused, which needs no memory."""
        offered = self._desired.offered
        try:
            return self._desired.take()
        except StorageError as e:
            models = offered.models if offered is not None else {}
            for model, wanted in models.items():
                record = self._journal.record(model)
                # With the old serial: the wish begins anew as soon as the disk takes it.
                begun = update.begin(record, serial=self._desired.serial, wanted=wanted)
                if begun is not None and begun.state is State.FETCHING:
                    self._refuse(model, begun, e)
            raise

    def _begin(self, model: str) -> None:
        wanted = self._desired.models.get(model)
        if wanted is None:
            return
        begun = update.begin(
            self._journal.record(model), serial=self._desired.serial, wanted=wanted
        )
        if begun is None:
            return
        self._steps.drop(model)
        try:
            self._journal.write(model, begun)
        except StorageError as e:
            if begun.state is not State.FETCHING:
                raise
            self._refuse(model, begun, e)

    def _refuse(self, model: str, begun: Record, error: StorageError) -> None:
        """An update ends where it began: the disk takes not even its record."""
        reason = update.disk_reason(error)
        self._steps.drop(model)
        self._journal.hold(model, update.failed(begun, reason, str(error)))
        self._steps.tell("update_failed", model, reason, str(error))

    def _step(self, model: str) -> bool:
        """Act on the present state; `True` where the next one can be acted on at once."""
        state = self._journal.record(model).state
        try:
            return self._steps.do(model)
        except Interrupted:
            return False
        except UpdateFailed as e:
            self._steps.fail(model, e.reason, str(e))
        except StorageError as e:
            if state is State.ACTIVE:
                # It serves, and the disk is not its fault: the verdict waits.
                raise
            self._steps.fail(model, update.disk_reason(e), str(e))
        except Exception as e:  # this update ends; the daemon goes on serving
            log.exception("update step failed", extra={"model": model})
            self._steps.fail(model, Reason.INTERNAL, f"{type(e).__name__}: {e}")
        return False

    def _go_back_as_asked(self, model: str) -> None:
        if not self._requests.begin(model, "rollback"):
            return
        try:
            self._steps.go_back(model, Reason.ASKED, _ASKED)
        except Interrupted:
            return
        except UpdateFailed as e:
            self._steps.tell("rollback_refused", model, e.reason, str(e))
        except Exception as e:  # this request ends; the daemon goes on serving
            log.exception("rollback failed", extra={"model": model})
            detail = f"{type(e).__name__}: {e}"
            self._steps.tell("rollback_refused", model, Reason.INTERNAL, detail)
        self._requests.answered(model, "rollback")

    def _cancel_as_asked(self, model: str) -> None:
        if not self._requests.begin(model, "cancel"):
            return
        if self._journal.record(model).state in update.REPLACEABLE:
            self._steps.fail(model, Reason.CANCELLED, _ASKED)
        else:
            self._steps.tell("cancel_refused", model, Reason.CANCELLED, "no update is under way")
        self._requests.answered(model, "cancel")

    def _makes_way(self, wait_s: float) -> bool:
        """Wait, and say whether a download shall make way; it goes on where it was after that.

        Any thread may ask, without waiting.
        """
        left_s = wait_s
        while not (self._is_asked() or self._is_due()):
            if left_s <= 0:
                return False
            part_s = min(left_s, self._pause_s())
            if self._wake.wait(part_s):
                # A wake for a wish that was taken already must not cut every later wait short.
                self._wake.clear()
            left_s -= part_s
        return True

    def _is_asked(self) -> bool:
        """Whether the turn shall end for something else: the daemon's end, a wish, a request."""
        is_asked = self._stopping or self._desired.is_offered or self._requests.is_any
        if is_asked:
            self._wake.set()
        return is_asked

    def _is_due(self) -> bool:
        """Whether another model must be seen to before a download goes on; asked often."""
        now_s = self._clock.monotonic()
        if self._found_due or now_s < self._look_s:
            return self._found_due
        self._look_s = now_s + JUDGE_S
        self._tell_serving()
        if self._restore.is_due or any(self._steps.is_due(model) for model in self._journal):
            self._found_due = True
            self._wake.set()
        return self._found_due

    def _tell_serving(self) -> None:
        """A model may be taken out of serving, or into it, beside every update."""
        serving = {model for model in self._journal if self._live.serves(model)}
        if serving != self._serving:
            self._serving = serving
            self._changed()

    def _pause_s(self) -> float:
        """Seconds between two looks at what is on trial, and at what is asked on disk."""
        is_judging = any(r.state in (State.ACTIVE, State.CANARY) for _, r in self._journal.items())
        return JUDGE_S if is_judging else POLL_S

    def _parts_in_use(self) -> set[str]:
        wishes = [r.update for _, r in self._journal.items() if r.state in update.REPLACEABLE]
        return {wish.wanted.sha256 for wish in wishes if wish is not None}
