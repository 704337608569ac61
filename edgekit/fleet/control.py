"""Control: commands to devices, kept until each has come to an end.

A command is in the store before it is sent, and sent again until its device has answered: a device
that is offline, or a coordinator or broker that is killed, delays it and loses nothing. It is never
begun twice, since the device knows it by its id. The link's thread puts answers into a bounded
queue; everything else is done in `step`, which one thread calls.
"""

from __future__ import annotations

import logging
import queue
import secrets
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from edgekit import control, messages, topics
from edgekit.clock import Clock
from edgekit.control import Command, CommandResult
from edgekit.errors import MessageError
from edgekit.fleet import control_rows, control_rules, inventory, store
from edgekit.fleet.control_rows import Request
from edgekit.fleet.control_rules import Attempt, Open, State
from edgekit.fleet.store import Store
from edgekit.signing import SigningKey
from edgekit.topics import DeviceTopic

log = logging.getLogger(__name__)

QUEUE_LENGTH = 256


class Control:
    """The fleet's side of commands.

    Args:
        store: where they are kept.
        clock: the coordinator's.
        publish: hands a message to the link; `False` where it has no room now.
        key: signs commands; `None` where devices take them unsigned.
        on_change: called when `step` has something to do.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        publish: Callable[[str, bytes], bool],
        key: SigningKey | None,
        on_change: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._publish = publish
        self._key = key
        self._on_change = on_change
        self._attempts: dict[str, Attempt] = {}
        self._received: queue.Queue[tuple[str, CommandResult]] = queue.Queue(QUEUE_LENGTH)

    def ask(self, request: Request) -> str:
        """Keep a command for its device; its id. Raises what `control_rows.create` raises."""
        number, now_ms = secrets.token_hex(8), self._clock.now_ms()
        with self._store.write() as connection:
            control_rows.create(connection, request, number=number, now_ms=now_ms)
        self._on_change()
        return number

    def receive(self, parsed: DeviceTopic, payload: bytes) -> bool:
        """Take an answer, from the link's thread; whether the topic is one of an answer.

        Where too many wait it is dropped: the device is asked again.
        """
        number = control.result_id(parsed.leaf)
        if number is None:
            return False
        topic = f"{parsed.site}/{parsed.device}/{parsed.leaf}"
        result = messages.decode(payload, CommandResult, topic=topic)
        if result.id != number:
            raise MessageError(f"{topic}: answers command {result.id}")
        try:
            self._received.put_nowait((inventory.key(parsed.site, parsed.device), result))
        except queue.Full:
            log.warning("answer dropped, too many wait", extra={"topic": topic})
        self._on_change()
        return True

    def forget(self) -> None:
        """The connection is a new one: ask again what has no answer."""
        self._attempts.clear()

    def step(self) -> bool:
        """Take answers, and send what is due; whether the link took all of it.

        Raises:
            StorageError: the store cannot be used; nothing is lost.
        """
        self._take_answers()
        with self._store.read() as connection:
            found = control_rows.open_commands(connection)
        is_open = {command.id for command in found}
        self._attempts = {key: held for key, held in self._attempts.items() if key in is_open}
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic()
        due: list[Open] = []
        ended: list[tuple[Open, control_rules.Step]] = []
        for command, what in control_rules.steps(found, self._attempts, now_ms=now_ms, now_s=now_s):
            if what == "send":
                due.append(command)
            elif what != "wait":
                ended.append((command, what))
        if ended:
            self._end(ended, now_ms=now_ms)
        return not due or self._send(due, now_ms=now_ms, now_s=now_s)

    def _end(self, ended: Sequence[tuple[Open, control_rules.Step]], *, now_ms: int) -> None:
        with self._store.write() as connection:
            for command, what in ended:
                state: State = "expired" if what == "expire" else "unanswered"
                detail = "never sent" if what == "expire" else "sent; whether it ran is not known"
                control_rows.settle(connection, command.id, state, now_ms=now_ms, detail=detail)
        # The next ones of these devices are due.
        self._on_change()

    def _send(self, due: Sequence[Open], *, now_ms: int, now_s: float) -> bool:
        """Send commands; `False` where the link had no room for all."""
        # First the store, then the link: what was never marked was never sent.
        with self._store.write() as connection:
            bodies = [self._body(connection, command, now_ms=now_ms) for command in due]
        for command, body in zip(due, bodies, strict=True):
            site, device_id = inventory.split(command.device)
            topic = topics.device(site, device_id, control.command_leaf(command.id))
            if not self._publish(topic, control.encode(body, key=self._key)):
                return False
            before = self._attempts.get(command.id)
            self._attempts[command.id] = control_rules.sent(before, boot=command.boot, now_s=now_s)
        return True

    def _body(self, connection: sa.Connection, command: Open, *, now_ms: int) -> Command:
        attempt = self._attempts.get(command.id)
        challenge = attempt.challenge if attempt and attempt.boot == command.boot else None
        control_rows.mark_sent(connection, command.id, now_ms=now_ms)
        return control_rows.message(connection, command.id, boot=command.boot, challenge=challenge)

    def _take_answers(self) -> None:
        if self._received.empty():
            return
        with self._store.write() as connection:
            while not self._received.empty():
                # This thread is the queue's only reader: what is there stays there.
                device, result = self._received.get_nowait()
                try:
                    self._answer(connection, device, result)
                except MessageError as e:
                    log.warning("answer dropped", extra={"device": device, "error": str(e)})

    def _answer(self, connection: sa.Connection, device: str, result: CommandResult) -> None:
        """Keep what an answer brings about, or raise `MessageError` before anything is written."""
        try:
            known = control_rows.find(connection, result.id)
        except store.UnknownId as e:
            raise MessageError(f"{device} answers a command that nobody sent: {e}") from e
        if known.device != device:
            raise MessageError(f"{device} answers command {result.id} of {known.device}")
        now_ms, attempt = self._clock.now_ms(), self._attempts.get(result.id)
        change = control_rules.change(
            known.state,
            known.reason,
            result,
            expires_ms=known.expires_ms,
            now_ms=now_ms,
            challenges=attempt.challenges if attempt else 0,
        )
        if change is None:
            return
        if change.state is None:
            if attempt is not None:
                self._attempts[result.id] = attempt._replace(
                    challenge=change.challenge, challenges=attempt.challenges + 1
                )
            return
        output = control.output_of(result, topic=f"{device}/{control.result_leaf(result.id)}")
        control_rows.settle(
            connection, result.id, change.state, now_ms=now_ms, result=result, output=output
        )
