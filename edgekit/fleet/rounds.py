"""Rounds: a series of federated rounds from a base bundle to a better one, one series at a time.

Each round is opened with retained messages, said again while answers are missing (a broker may lose
one), closes when every participant has answered or its time is over, and is averaged while updates
come in. After the last one the build path decides. Rows are
written before devices hear of a round. A restart of the coordinator ends a series: its updates were
in memory; the retained messages of its round are cleared, and the series says why it failed.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections.abc import Callable

import sqlalchemy as sa

from edgekit import envelope, messages, storage, tensors, topics, training
from edgekit.bundle import Bundle
from edgekit.clock import Clock
from edgekit.errors import EdgekitError, FleetError
from edgekit.fleet import inventory, release, repository, rollouts, series
from edgekit.fleet.files import Files
from edgekit.fleet.inventory import Device
from edgekit.fleet.open_round import Keys, OpenRound
from edgekit.fleet.release import Builder, Candidate, Order
from edgekit.fleet.repository import Repository
from edgekit.fleet.rollouts import Rollouts
from edgekit.fleet.series import Plan, Request
from edgekit.fleet.store import Store
from edgekit.messages import ParametersHeader, RoundOpen
from edgekit.signing import SigningKey
from edgekit.tensors import Arrays
from edgekit.topics import UpdateTopic

log = logging.getLogger(__name__)

# Updates that wait for aggregation; more hold the link back, so memory stays bounded.
_QUEUE_LENGTH = 2
_POLL_S = 0.2
# Answers that wait when a round closes are noted as late; whoever goes on sending is not heard.
_LATE_MS = 1000
# A round is said again after so long, then after twice as long, and so on.
_REPEAT_S = 5.0
_LONGEST_REPEAT_S = 300.0
_INTERRUPTED = "the coordinator was restarted while it ran"


class Rounds:
    """Runs series of rounds in a thread of its own.

    Args:
        publish: hands a retained message to the link; `False` where it has no room now.
        key: signs what devices are asked; `None` where they are asked without a signature.
        keys: those of a device, whose answers are signed then.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        repository: Repository,
        files: Files,
        rollouts: Rollouts,
        builder: Builder,
        publish: Callable[[str, bytes], bool],
        key: SigningKey | None = None,
        keys: Keys | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._repository = repository
        self._files = files
        self._rollouts = rollouts
        self._builder = builder
        self._publish = publish
        self._key = key
        self._keys = keys
        self._requests: queue.Queue[int] = queue.Queue()
        self._updates: queue.Queue[tuple[UpdateTopic, bytes]] = queue.Queue(_QUEUE_LENGTH)
        self._open: str | None = None
        self._renew = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rounds", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; a series that runs is marked at the next start."""
        self._closing.set()
        self._thread.join()

    def reconnected(self) -> None:
        """The link is up again: what is retained of an open round is sent once more."""
        self._renew.set()

    def receive(self, topic: UpdateTopic, payload: bytes) -> None:
        """Take an update from the link; waits while others are being added."""
        while not self._closing.is_set():
            if topic.round != self._open:
                log.info("update dropped: no such round is open", extra={"round": topic.round})
                return
            try:
                self._updates.put((topic, payload), timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def begin(self, request: Request) -> int:
        """Accept a series and return its id; its thread takes it from there.

        Raises:
            FleetError: no key, no trainable bundle, too few devices, or a series is running.
        """
        self._builder.require_key()
        for name in (request.source, request.data, request.recipe):
            if name is not None:
                self._files.path(name)
        with self._store.write() as connection:
            base = series.base_of(connection, request)
            plan = series.plan_of(request, base)
            series.check_free(connection)
            ready = self._participants(connection, plan)
            if len(ready) < plan.min_updates:
                raise FleetError(
                    f"{len(ready)} devices are online, serve {base.name} {base.version} and train "
                    f"it; {plan.min_updates} are needed",
                    hint="roll that version out, and name the model in [training] of the devices",
                )
            number = series.insert(connection, plan, now_ms=self._clock.now_ms())
        self._requests.put(number)
        return number

    def _work(self) -> None:
        self._end_interrupted()
        while not self._closing.is_set():
            try:
                number = self._requests.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            try:
                self._run(number)
            except EdgekitError as e:
                log.warning("series failed", extra={"series": number, "error": e.message})
                self._set(number, "failed", e.message)
            finally:
                self._open = None

    def _end_interrupted(self) -> None:
        with self._store.write() as connection:
            left = series.end_interrupted(
                connection, reason=_INTERRUPTED, now_ms=self._clock.now_ms()
            )
        for site, round_id in left:
            self._clear(site, round_id)

    def _run(self, number: int) -> None:
        with self._store.read() as connection:
            plan = series.plan(connection, number)
        path = self._repository.file(plan.base_file)
        with Bundle.open(path) as base:
            parameters = base.tensors(training.PARAMETERS)
        for turn in range(1, plan.count + 1):
            parameters = self._round(number, turn, plan, parameters)
            if self._closing.is_set():
                return
        self._set(number, "building", "")
        candidate = self._candidate(number, plan, parameters)
        if not candidate.accepted:
            self._set(number, "refused", candidate.reason, candidate=candidate)
            return
        rollout, said = self._roll_out(plan, candidate) if plan.rollout else (None, "")
        reason = "; ".join(part for part in (candidate.reason, said) if part)
        self._set(number, "done", reason, candidate=candidate, rollout=rollout)

    def _round(self, number: int, turn: int, plan: Plan, parameters: Arrays) -> Arrays:
        """One round: the weights after it."""
        opened = self._announce(number, turn, plan, parameters)
        current = OpenRound(opened, parameters, keys=self._keys)
        frame = tensors.pack(ParametersHeader(round=opened.round), parameters)
        self._open = opened.round
        try:
            self._send_parameters(opened, frame)
            self._send_open(current)
            self._collect(current, frame)
        finally:
            self._open = None
            self._drain()
            self._clear(plan.site, opened.round)
        if self._closing.is_set():
            return parameters
        enough = current.accepted >= plan.min_updates
        reason = "" if enough else _shortfall(current, plan.min_updates)
        with self._store.write() as connection:
            series.close_round(
                connection,
                opened.round,
                state="closed" if enough else "failed",
                reason=reason,
                now_ms=self._clock.now_ms(),
            )
        if not enough:
            raise FleetError(f"round {turn} failed: {reason}")
        return current.result()

    def _announce(self, number: int, turn: int, plan: Plan, parameters: Arrays) -> RoundOpen:
        """Write the round down, with whoever can take part now."""
        with self._store.read() as connection:
            ready = self._participants(connection, plan)
        if len(ready) < plan.min_updates:
            raise FleetError(f"round {turn}: {len(ready)} devices can take part")
        now_ms = self._clock.now_ms()
        opened = RoundOpen(
            # Devices remember the rounds they answered; a new store must not repeat a name.
            round=f"s{number}-r{turn}-{secrets.token_hex(4)}",
            site=plan.site,
            model=plan.model,
            base=plan.base,
            parameters_sha256=tensors.digest(parameters),
            participants=tuple(device.id for device in ready),
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            closes_at=now_ms + round(plan.timeout_s * 1000),
        )
        with self._store.write() as connection:
            series.open_round(connection, number, turn, opened, now_ms=now_ms)
        return opened

    def _collect(self, current: OpenRound, frame: bytes) -> None:
        opened = current.opened
        wait_s = _REPEAT_S
        again_s = self._clock.monotonic() + wait_s
        while not current.complete and not self._closing.is_set():
            if self._renew.is_set():
                self._send_parameters(opened, frame)
                self._send_open(current)
            elif self._clock.monotonic() > again_s:
                wait_s = min(2 * wait_s, _LONGEST_REPEAT_S)
                again_s = self._clock.monotonic() + wait_s
                self._send_open(current)
            try:
                topic, payload = self._updates.get(timeout=_POLL_S)
            except queue.Empty:
                if self._clock.now_ms() > opened.closes_at:
                    return
                continue
            if self._clock.now_ms() > opened.closes_at + _LATE_MS:
                return
            if (topic.site, topic.round) == (opened.site, opened.round):
                self._take(current, topic.device, payload)

    def _take(self, current: OpenRound, device: str, payload: bytes) -> None:
        answer = current.take(device, payload, now_ms=self._clock.now_ms())
        if answer is None:
            return
        with self._store.write() as connection:
            series.note_answer(connection, current.opened.round, answer)
        if not answer.accepted:
            log.warning("update not counted", extra={"device": device, "reason": answer.reason})

    def _send_parameters(self, opened: RoundOpen, frame: bytes) -> None:
        """Before the round is opened: who hears of it finds them."""
        self._renew.clear()
        topic = topics.round_parameters(opened.site, opened.round)
        self._send(topic, frame, until=opened.closes_at)

    def _send_open(self, current: OpenRound) -> None:
        opened = current.announcement
        body = envelope.seal(messages.encode(opened), kind=envelope.ROUND, key=self._key)
        self._send(topics.round_open(opened.site, opened.round), body, until=opened.closes_at)

    def _send(self, topic: str, payload: bytes, *, until: int) -> None:
        while not self._publish(topic, payload):
            if self._closing.wait(_POLL_S):
                return
            if self._clock.now_ms() > until:
                raise FleetError("the link was down until the round had to close")

    def _clear(self, site: str, round_id: str) -> None:
        """Take back what is retained; while the link is down it stays, past its `closes_at`."""
        for topic in (topics.round_open(site, round_id), topics.round_parameters(site, round_id)):
            if not self._publish(topic, b""):
                log.warning("round not cleared: the link is down", extra={"round": round_id})

    def _drain(self) -> None:
        while not self._updates.empty():
            self._updates.get_nowait()

    def _participants(self, connection: sa.Connection, plan: Plan) -> list[Device]:
        everyone = inventory.every(connection, site=plan.site)
        return [device for device in everyone if device.trains(plan.model, base=plan.base)]

    def _candidate(self, number: int, plan: Plan, parameters: Arrays) -> Candidate:
        folder = self._builder.folder(number)
        weights = folder / "weights.safetensors"
        storage.write(weights, tensors.encode(parameters))
        with self._store.read() as connection:
            known = repository.versions(connection, name=plan.model, profile=plan.profile)
        order = Order(
            source=self._files.path(plan.source),
            data=self._files.path(plan.data),
            recipe=self._files.path(plan.recipe) if plan.recipe else None,
            weights=weights,
            profile=plan.profile,
            name=plan.model,
            version=release.next_version([item.version for item in known]),
        )
        path = self._builder.build(order, folder=folder, closing=self._closing)
        with (
            Bundle.open(path) as built,
            Bundle.open(self._repository.file(plan.base_file)) as base,
        ):
            candidate = release.compare(built, base)
        if candidate.accepted:
            self._repository.publish_copy(path)
        return candidate

    def _roll_out(self, plan: Plan, candidate: Candidate) -> tuple[int | None, str]:
        with self._store.read() as connection:
            everyone = inventory.every(connection, site=plan.site)
        # A new version is for those who have the model, not for the whole fleet.
        having = [device for device in everyone if device.state_of(plan.model).version]
        request = rollouts.Request(
            model=plan.model,
            version=candidate.version,
            site=plan.site,
            devices=tuple(device.device for device in having),
        )
        try:
            return self._rollouts.create(request), ""
        except FleetError as e:
            return None, f"published, not rolled out: {e.message}"

    def _set(
        self,
        number: int,
        state: series.State,
        reason: str,
        *,
        candidate: Candidate | None = None,
        rollout: int | None = None,
    ) -> None:
        with self._store.write() as connection:
            series.set_state(
                connection,
                number,
                state,
                reason,
                candidate=candidate,
                rollout=rollout,
                now_ms=self._clock.now_ms(),
            )


def _shortfall(current: OpenRound, needed: int) -> str:
    """Why a round failed; names the devices that never answered, as far as they fit a line."""
    silent = current.missing
    named = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
    said = f"; no answer from {named}" if silent else ""
    return f"{current.accepted} updates, {needed} needed{said}"
