"""Control: commands from the fleet, each judged, written down, carried out once and answered.

One thread does it, in the order in which they come. Promise: a command that changes something is
on disk before it is begun, so that a kill at any moment has it answered with `interrupted`, and not
begun again. The coordinator asks until it has the result; nothing else keeps one from being lost.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgekit import control, messages
from edgekit.clock import Clock
from edgekit.control import READING, Command, CommandResult, Kind
from edgekit.errors import MessageError, StorageError, UntrustedError
from edgekit.signing import PublicKey
from edgekit_runtime.control import kinds
from edgekit_runtime.control.audit import Allowance, Audit
from edgekit_runtime.control.challenge import Challenge
from edgekit_runtime.control.execution import Execution
from edgekit_runtime.control.hands import Hands
from edgekit_runtime.control.journal import Entry, Journal
from edgekit_runtime.control.judge import Here, Refusal, judge
from edgekit_runtime.control.kinds import Work, set_interval
from edgekit_runtime.control.outcome import Outcome, result
from edgekit_runtime.control.settings import CommandsSection

log = logging.getLogger(__name__)

QUEUE_LENGTH = 8
STOP_LIMIT_S = 5.0
# What is noted of messages that do not count, and answered of those that no trusted key signed.
REFUSALS_AT_ONCE = 20
REFUSAL_EVERY_S = 360.0


class Control:
    """Carries out what the fleet asks.

    Args:
        state: the state folder.
        device: `SITE/ID`.
        boot: of this start.
        keys: whose commands count; `None` takes unsigned ones, of an insecure fleet.
        settings: what may be asked.
        hands: what commands may reach.
        publish: hands a payload to the link, for a topic below the device; `False` without a link.
        clock: for time stamps and limits.
        draw: gives 16 hex digits that nobody can guess.
        table: what each kind does.
    """

    def __init__(
        self,
        *,
        state: Path,
        device: str,
        boot: str,
        keys: Sequence[PublicKey] | None,
        settings: CommandsSection,
        hands: Hands,
        publish: Callable[[str, bytes], bool],
        clock: Clock,
        draw: Callable[[], str] = lambda: secrets.token_hex(8),
        table: Mapping[Kind, Work] = kinds.TABLE,
    ) -> None:
        self._device = device
        self._boot = boot
        self._keys = keys
        self._hands = hands
        self._publish = publish
        self._clock = clock
        self._journal = Journal(state)
        self._audit = Audit(state, boot=boot, clock=clock)
        self._allowance = Allowance(burst=REFUSALS_AT_ONCE, every_s=REFUSAL_EVERY_S, clock=clock)
        self._challenge = Challenge(clock=clock, draw=draw)
        self._execution = Execution(settings, hands, table, clock=clock)
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue(QUEUE_LENGTH)
        # Whether the latest result must still be handed to a link; a start does not know.
        self._owes = self._journal.latest.result is not None
        self._busy_with: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def is_idle(self) -> bool:
        """Whether everything that came was dealt with."""
        return self._queue.unfinished_tasks == 0

    def start(self) -> None:
        """Say of what a kill cut short that it was, and take commands from now on."""
        if self._keys is None:
            log.warning("commands are taken unsigned: [fleet] insecure")
        set_interval.restore(self._hands)
        if self._journal.latest.is_running:
            self._interrupt()
        self._thread.start()

    def received(self, number: str, payload: bytes) -> None:
        """Take a message of `cmd/{number}`, from the link's thread; never waits.

        Where the queue is full it is dropped: the coordinator sends it again.
        """
        if not payload or number == self._busy_with:
            return
        try:
            self._queue.put_nowait((number, payload))
        except queue.Full:
            log.warning("command dropped, too many wait", extra={"id": number})

    def connected(self) -> None:
        """The link is up: say what could not be said. From the link's thread; never waits."""
        if self._owes:
            self._wake()

    def close(self, *, timeout_s: float = STOP_LIMIT_S) -> None:
        """Tell what runs to end; what does not in time is `interrupted` at the next start."""
        self._stopping.set()
        self._execution.close()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        # Full: it is awake.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _run(self) -> None:
        while not self._stopping.is_set():
            item = self._queue.get()
            if self._stopping.is_set():
                return
            try:
                if item is not None:
                    self._take(*item)
                elif self._owes:
                    self._tell_latest()
            except Exception:  # the next command may fare better; the log has the traceback
                log.exception("command failed")
            finally:
                self._queue.task_done()

    def _take(self, number: str, payload: bytes) -> None:
        topic = control.command_leaf(number)
        try:
            command, key = control.decode(payload, trusted=self._keys, topic=topic)
        except UntrustedError as e:
            self._turn_away(number, Outcome("refused", "untrusted", e.message))
            return
        except MessageError as e:
            self._turn_away(number, Outcome("refused", "malformed", e.message))
            return
        verdict = judge(command, self._here(), topic_id=number)
        if isinstance(verdict, Refusal):
            self._refuse(number, command, key, verdict)
        elif verdict == "repeat":
            self._tell_latest()
        else:
            self._begin(command, key)

    def _here(self) -> Here:
        latest = self._journal.latest
        return Here(
            device=self._device,
            boot=self._boot,
            counter=latest.counter,
            latest=latest.id,
            now_ms=self._clock.now_ms(),
            challenge=self._challenge.open,
        )

    def _turn_away(self, number: str, outcome: Outcome) -> None:
        """Answer what no trusted key signed, so often and no more."""
        if self._allowance.take():
            log.warning("command refused", extra={"id": number, "reason": outcome.reason})
            self._audit.add(number, outcome)
            self._tell(self._result(number, outcome))

    def _refuse(self, number: str, command: Command, key: str, refusal: Refusal) -> None:
        """Answer what a trusted key signed, and what does not count here and now."""
        outcome = Outcome("refused", refusal.reason, refusal.detail)
        if self._allowance.take():
            log.info("command refused", extra={"id": number, "reason": refusal.reason})
            self._audit.add(number, outcome, command=command, key=key)
        answer = self._result(number, outcome)
        if refusal.wants_challenge:
            answer = msgspec.structs.replace(answer, challenge=self._challenge.ask())
        self._tell(answer)

    def _begin(self, command: Command, key: str) -> None:
        """Carry out a command that counts; its number is used up, whatever comes of it."""
        self._challenge.spend()
        self._busy_with = command.id
        since_s = self._clock.monotonic()
        try:
            begun = Outcome("running")
            is_on_disk = self._keep(command, self._result(command.id, begun, of=command))
            self._audit.add(command.id, begun, command=command, key=key)
            if is_on_disk or command.kind in READING:
                self._tell(self._journal.latest.result)
                outcome = self._execution.run(command)
            else:
                detail = "the state folder takes nothing, and a kill would have this done twice"
                outcome = Outcome("refused", "storage", detail)
            took_ms = round((self._clock.monotonic() - since_s) * 1000)
            self._keep(command, self._result(command.id, outcome, of=command, took_ms=took_ms))
            self._audit.add(command.id, outcome, command=command, key=key)
        finally:
            self._busy_with = None
        self._tell_latest()

    def _interrupt(self) -> None:
        """What was begun when the daemon was killed: nobody knows how far it came."""
        before = self._journal.latest
        assert before.id is not None
        detail = f"the daemon ended while {before.kind} ran; how far it came is not known"
        outcome = Outcome("interrupted", "killed", detail)
        answer = self._result(before.id, outcome)
        try:
            self._journal.write(msgspec.structs.replace(before, result=answer))
        except StorageError as e:
            log.error("journal is not on disk", extra={"error": str(e)})
        self._audit.add(before.id, outcome)

    def _keep(self, command: Command, answer: CommandResult) -> bool:
        """Make it the latest; whether it is on disk."""
        try:
            entry = Entry(counter=command.counter, kind=command.kind, result=answer)
            self._journal.write(entry)
        except StorageError as e:
            log.error("journal is not on disk", extra={"error": str(e), "id": command.id})
            return False
        return True

    def _result(
        self,
        number: str,
        outcome: Outcome,
        *,
        of: Command | None = None,
        took_ms: int | None = None,
    ) -> CommandResult:
        return result(
            number,
            outcome,
            boot=self._boot,
            at=self._clock.now_ms(),
            counter=of.counter if of else self._journal.latest.counter,
            took_ms=took_ms,
        )

    def _tell_latest(self) -> None:
        # Before it is tried: a connection that is made meanwhile must find it.
        self._owes = True
        self._owes = not self._tell(self._journal.latest.result)

    def _tell(self, answer: CommandResult | None) -> bool:
        if answer is None:
            return True
        return self._publish(control.result_leaf(answer.id), messages.encode(answer))
