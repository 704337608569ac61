"""Ingest: what devices send becomes rows; what is committed is acknowledged, and nothing else.

The link's thread hands payloads to a bounded queue and waits when it is full, which holds the
broker back. One thread takes them apart (a payload may be a batch of messages), commits so many
messages at a time and then acknowledges each (device, boot) cumulatively. A message is stored once,
however often it comes; one that comes late does not pass for what the device does now.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from edgekit import batches, messages, topics
from edgekit.clock import Clock
from edgekit.errors import MessageError, StorageError
from edgekit.fleet import inventory, parts, store
from edgekit.fleet.store import Store
from edgekit.fleet.telemetry import Sums, observed_ms
from edgekit.fleet.window import Window
from edgekit.messages import Counted, Event, Message, Reported, Status, Telemetry
from edgekit.topics import DeviceTopic

log = logging.getLogger(__name__)

QUEUE_LENGTH = 10_000
BATCH_LENGTH = 2_000
LEAVES = (topics.STATUS, topics.REPORTED, topics.TELEMETRY, topics.EVENT)
_KINDS: dict[str, type[Message]] = {
    topics.STATUS: Status,
    topics.REPORTED: Reported,
    topics.TELEMETRY: Telemetry,
    topics.EVENT: Event,
}
_IDLE_S = 0.5
# A batch gathers this long: one commit and one acknowledgement then serve many messages.
_GATHER_S = 0.1
_ACK_RETRY_S = 0.01
_STORE_RETRY_S = 1.0
_MAX_WINDOWS = 50_000
_LOOKUP_LENGTH = 300

Boot = tuple[str, str]


class Counts(msgspec.Struct):
    """What happened to messages since the start."""

    stored: int = 0
    duplicates: int = 0
    malformed: int = 0
    too_far: int = 0
    acks: int = 0


class Received(NamedTuple):
    """A message that was understood, at least up to its number."""

    device: str
    leaf: str
    body: Message
    payload: bytes


class Ingest:
    """The path from the link to the store.

    Args:
        store: where messages go.
        clock: the coordinator's clock; devices' clocks may step.
        publish: hands an acknowledgement to the link; `False` where it has no room now.
        on_change: called after a commit that changed the state of a device.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        publish: Callable[[str, bytes], bool],
        on_change: Callable[[], None],
    ) -> None:
        self.counts = Counts()
        self._store = store
        self._clock = clock
        self._publish = publish
        self._on_change = on_change
        self._queue: queue.Queue[tuple[str, bytes]] = queue.Queue(QUEUE_LENGTH)
        self._windows: dict[Boot, Window] = {}
        self._unsent: dict[Boot, int] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ingest", daemon=True)

    @property
    def queued(self) -> int:
        """Messages that wait for their commit."""
        return self._queue.qsize()

    def start(self) -> None:
        self._thread.start()

    def receive(self, topic: str, payload: bytes) -> None:
        """Take a message from the link; waits while the queue is full."""
        while not self._closing.is_set():
            try:
                self._queue.put((topic, payload), timeout=_IDLE_S)
            except queue.Full:
                continue
            return

    def close(self) -> None:
        """Store what was taken, acknowledge what the link still takes, and end the thread."""
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            received = (item for payload in batch for item in self._understand(*payload))
            # What batches unfold to is never in memory at once.
            while some := list(islice(received, BATCH_LENGTH)):
                while not self._try_commit(some):
                    if self._closing.wait(_STORE_RETRY_S):
                        return
                self._send_acks()

    def _next_batch(self) -> list[tuple[str, bytes]]:
        """Payloads that wait, at least one; none at the end."""
        while True:
            wait_s = _ACK_RETRY_S if self._unsent else _IDLE_S
            try:
                batch = [self._queue.get(timeout=wait_s)]
            except queue.Empty:
                if self._closing.is_set():
                    return []
                self._send_acks()
                continue
            if self._queue.qsize() < BATCH_LENGTH:
                self._closing.wait(_GATHER_S)
            while len(batch) < BATCH_LENGTH:
                if self._queue.empty():
                    break
                # This thread is the queue's only reader: what is there stays there.
                batch.append(self._queue.get_nowait())
            return batch

    def _understand(self, topic: str, payload: bytes) -> Iterator[Received]:
        """The messages in a payload that can be stored."""
        parsed = topics.parse(topic)
        if not isinstance(parsed, DeviceTopic) or parsed.leaf not in _KINDS:
            return
        device = inventory.key(parsed.site, parsed.device)
        try:
            texts = batches.unpack(payload, topic=topic)
        except MessageError as e:
            # The device sends its messages again, at last each alone.
            self._count_malformed(e)
            return
        for text in texts:
            found = self._understand_one(topic, device, parsed.leaf, text)
            if found is not None:
                yield found

    def _understand_one(self, topic: str, device: str, leaf: str, text: bytes) -> Received | None:
        try:
            body = messages.decode(text, _KINDS[leaf], topic=topic)
        except MessageError as e:
            self._count_malformed(e)
            return self._head_only(topic, device, leaf, text)
        if isinstance(body, Counted) and body.floor > body.seq:
            self.counts.malformed += 1
            log.warning("message dropped: floor above seq", extra={"topic": topic})
            return None
        return Received(device, leaf, body, text)

    def _count_malformed(self, error: MessageError) -> None:
        self.counts.malformed += 1
        log.warning("message not understood", extra={"error": str(error)})

    @staticmethod
    def _head_only(topic: str, device: str, leaf: str, payload: bytes) -> Received | None:
        """A counted message whose number is right is stored as it is, body unread.

        Otherwise a body that this version does not understand would stop the device's outbox.
        """
        if not issubclass(_KINDS[leaf], Counted):
            return None
        try:
            head = messages.decode(payload, Counted, topic=topic)
        except MessageError:
            return None
        return Received(device, leaf, head, payload) if head.floor <= head.seq else None

    def _try_commit(self, batch: list[Received]) -> bool:
        try:
            self._commit(batch)
        except StorageError as e:
            # Windows may have moved without their rows: read them again from the store.
            self._windows.clear()
            log.error("messages wait: %s", e, extra={"messages": len(batch)})
            return False
        return True

    def _commit(self, batch: list[Received]) -> None:
        now_ms = self._clock.now_ms()
        boots = {(item.device, item.body.boot) for item in batch if isinstance(item.body, Counted)}
        changed = inventory.Changes(now_ms=now_ms)
        sums, told = Sums(), parts.Told()
        rows: list[dict[str, object]] = []
        events: list[dict[str, object]] = []
        verdicts = Counts()
        with self._store.write() as connection:
            self._load_windows(connection, boots)
            for item in batch:
                body = item.body
                if isinstance(body, Counted):
                    if not self._take(item.device, body, verdicts):
                        continue
                    rows.append(_message_row(item, body, now_ms))
                    if isinstance(body, Event):
                        events.append(_event_row(item.device, body, now_ms))
                if isinstance(body, Telemetry):
                    sums.add(body, at_ms=observed_ms(body, received_ms=now_ms))
                    told.add(item.device, body)
                if self._is_latest(item):
                    changed.add(item.device, body)
            store.upsert(connection, store.messages, rows)
            store.upsert(connection, store.boots, self._boot_rows(boots), replace=["acked"])
            if events:
                connection.execute(store.events.insert(), events)
            changed.write(connection)
            sums.write(connection)
            told.write(connection)
        self.counts.stored += verdicts.stored
        self.counts.duplicates += verdicts.duplicates
        self.counts.too_far += verdicts.too_far
        self._unsent.update({boot: self._windows[boot].acked for boot in boots})
        if changed.states:
            self._on_change()

    def _take(self, device: str, body: Counted, verdicts: Counts) -> bool:
        verdict = self._windows[device, body.boot].take(body.seq, floor=body.floor)
        if verdict == "new":
            verdicts.stored += 1
        elif verdict == "duplicate":
            verdicts.duplicates += 1
        else:
            verdicts.too_far += 1
        return verdict == "new"

    def _is_latest(self, item: Received) -> bool:
        """Whether nothing newer of the same boot has come before, by its number and not a clock."""
        if not isinstance(item.body, Counted):
            return True
        return item.body.seq >= self._windows[item.device, item.body.boot].highest

    def _boot_rows(self, boots: set[Boot]) -> list[dict[str, object]]:
        return [
            {"device": device, "boot": boot, "acked": self._windows[device, boot].acked}
            for device, boot in boots
        ]

    def _load_windows(self, connection: sa.Connection, boots: set[Boot]) -> None:
        if len(self._windows) > _MAX_WINDOWS:
            self._windows.clear()
        missing = [boot for boot in boots if boot not in self._windows]
        for start in range(0, len(missing), _LOOKUP_LENGTH):
            self._windows.update(load_windows(connection, missing[start : start + _LOOKUP_LENGTH]))

    def _send_acks(self) -> None:
        for (device, boot), acked in list(self._unsent.items()):
            # Nothing without a gap yet: there is nothing to acknowledge.
            if acked > 0:
                site, device_id = inventory.split(device)
                topic = topics.device(site, device_id, topics.ACK)
                ack = messages.encode(messages.Ack(boot=boot, seq=acked))
                if not self._publish(topic, ack):
                    return
                self.counts.acks += 1
            del self._unsent[device, boot]


def load_windows(connection: sa.Connection, boots: list[Boot]) -> dict[Boot, Window]:
    """The windows of several boots, as the store has them."""
    acked = dict.fromkeys(boots, 0)
    above: dict[Boot, set[int]] = {boot: set() for boot in boots}
    table, stored = store.boots, store.messages
    for device, boot, seq in connection.execute(
        sa.select(table).where(sa.tuple_(table.c.device, table.c.boot).in_(boots))
    ):
        acked[device, boot] = seq
    beyond = sa.select(stored.c.device, stored.c.boot, stored.c.seq).join(
        table, sa.and_(table.c.device == stored.c.device, table.c.boot == stored.c.boot)
    )
    for device, boot, seq in connection.execute(
        beyond.where(
            sa.tuple_(table.c.device, table.c.boot).in_(boots), stored.c.seq > table.c.acked
        )
    ):
        above[device, boot].add(seq)
    return {boot: Window(acked[boot], above[boot]) for boot in boots}


def prune(connection: sa.Connection, *, before_ms: int) -> int:
    """Forget messages received before a time and acknowledged; how many there were.

    Numbers at or below `acked` stay known as stored without their rows.
    """
    table, stored = store.boots, store.messages
    acked = (
        sa.select(table.c.acked)
        .where(table.c.device == stored.c.device, table.c.boot == stored.c.boot)
        .scalar_subquery()
    )
    done = sa.delete(stored).where(stored.c.received_ms < before_ms, stored.c.seq <= acked)
    return connection.execute(done).rowcount


def _message_row(item: Received, body: Counted, now_ms: int) -> dict[str, object]:
    return {
        "device": item.device,
        "boot": body.boot,
        "seq": body.seq,
        "leaf": item.leaf,
        "received_ms": now_ms,
        "payload": item.payload,
    }


def _event_row(device: str, event: Event, now_ms: int) -> dict[str, object]:
    return {
        "device": device,
        "at_ms": event.at,
        "received_ms": now_ms,
        "kind": event.kind,
        "level": event.level,
        "message": event.message,
        "facts": store.to_json(event.facts),
    }
