"""Trainer: this device's part in federated rounds. Its samples never leave it, only changes do.

One thread of low priority trains one round at a time. Promise: each round that asks this device
gets one answer, an update or a refusal with its reason, or none if the round closes before. It is
given again while the coordinator says that it has not come: a broker may lose what it acknowledged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from edgekit import messages, tensors, topics, training
from edgekit.clock import Clock
from edgekit.errors import DataError, EdgekitError, EngineError, MessageError
from edgekit.link import Qos
from edgekit.messages import ParametersHeader, Refusal, RoundOpen, UpdateHeader
from edgekit.tensors import Arrays
from edgekit.training import TrainingSpec
from edgekit_runtime.answers import Answer, Answers
from edgekit_runtime.config import TrainingSection
from edgekit_runtime.engines import ENGINES, Session
from edgekit_runtime.learner import (
    Diverged,
    Learned,
    OutOfTime,
    Settings,
    check_weights,
    learn,
    read_samples,
)
from edgekit_runtime.live import Active
from edgekit_runtime.telemetry import Events

log = logging.getLogger(__name__)

MAX_WAITING = 16
PARAMETERS_WAIT_S = 60.0
_POLL_S = 0.5


class RefusalReason(Enum):
    """Why a device does not take part; `REFUSAL_MEANING` says it in a line."""

    NOT_INSTALLED = "not_installed"
    WRONG_BASE = "wrong_base"
    NOT_TRAINABLE = "not_trainable"
    NOT_OFFERED = "not_offered"
    NO_PARAMETERS = "no_parameters"
    WRONG_PARAMETERS = "wrong_parameters"
    BAD_DATA = "bad_data"
    DIVERGED = "diverged"
    OUT_OF_TIME = "out_of_time"
    ENGINE_ERROR = "engine_error"
    BUSY = "busy"
    INTERNAL = "internal"


REFUSAL_MEANING: Mapping[RefusalReason, str] = {
    RefusalReason.NOT_INSTALLED: "the model is not installed here",
    RefusalReason.WRONG_BASE: "another bundle of the model serves here than the round starts from",
    RefusalReason.NOT_TRAINABLE: "the bundle carries no training graphs",
    RefusalReason.NOT_OFFERED: "this device's owner does not offer training for the model",
    RefusalReason.NO_PARAMETERS: "the parameters of the round did not come",
    RefusalReason.WRONG_PARAMETERS: "the parameters are not the ones that the round announced",
    RefusalReason.BAD_DATA: "the samples on this device cannot be read or do not fit the model",
    RefusalReason.DIVERGED: "loss or weights became something else than finite numbers",
    RefusalReason.OUT_OF_TIME: "training does not fit the device's budget or the round's time",
    RefusalReason.ENGINE_ERROR: "the engine could not open or run the training graphs",
    RefusalReason.BUSY: "too many rounds wait on this device",
    RefusalReason.INTERNAL: "an error in edgekit itself; the daemon's log has the traceback",
}


class Refused(Exception):
    """This device cannot take part."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RoundLink(Protocol):
    """What a trainer needs of the link."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool: ...

    def subscribe(self, topic: str, *, qos: Qos = 1) -> None: ...

    def unsubscribe(self, topic: str) -> None: ...


class Trainer:
    """Takes part in rounds.

    Args:
        site: of this device.
        device: its id.
        settings: `[training]` of the configuration.
        answers: what was answered before.
        active: what serves of a model.
        link: to the broker.
        events: where the fleet hears of it.
        sign: puts this device's signature to an answer, raising `EdgekitError` where it cannot.
        clock: for budgets and for the time at which a round closes.
    """

    def __init__(
        self,
        *,
        site: str,
        device: str,
        settings: TrainingSection,
        answers: Answers,
        active: Callable[[str], Active | None],
        link: RoundLink,
        events: Events,
        sign: Callable[[bytes], bytes] = bytes,
        clock: Clock,
    ) -> None:
        self._site = site
        self._device = device
        self._settings = settings
        self._answers = answers
        self._active = active
        self._link = link
        self._events = events
        self._sign = sign
        self._clock = clock
        self._rounds: queue.Queue[RoundOpen | None] = queue.Queue(MAX_WAITING)
        self._known: set[str] = set()
        self._ended: set[str] = set()
        self._waits_for: str | None = None
        self._frames: queue.Queue[bytes] = queue.Queue(1)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)

    def start(self) -> None:
        self._answers.prune(now_ms=self._clock.now_ms())
        self._thread.start()

    def close(self, *, timeout_s: float) -> None:
        """End at the next step; a round that was not answered is taken up at the next start."""
        self._stopping = True
        with suppress(queue.Full):
            self._rounds.put_nowait(None)
        self._thread.join(timeout_s)

    def opened(self, opened: RoundOpen) -> None:
        """A round began, or goes on; called in the link's thread, at each connection again."""
        if self._device not in opened.participants or opened.round in self._known:
            return
        if self._device in opened.answered or opened.closes_at <= self._clock.now_ms():
            return
        if (said := self._answers.find(opened.round)) is not None:
            self._publish(said)
            return
        self._known.add(opened.round)
        try:
            self._rounds.put_nowait(opened)
        except queue.Full:
            self._known.discard(opened.round)
            self._refuse(opened, Refused(RefusalReason.BUSY, f"{MAX_WAITING} rounds wait"))

    def ended(self, round_id: str) -> None:
        """A round is over; nothing more is said in it."""
        if round_id in self._known:
            self._ended.add(round_id)
        self._answers.forget(round_id)

    def parameters(self, round_id: str, frame: bytes) -> None:
        """The parameters of a round came; called in the link's thread."""
        if round_id == self._waits_for and frame and self._frames.empty():
            self._frames.put_nowait(frame)

    def _run(self) -> None:
        # The thread's own priority: what serves goes first.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._settings.niceness)
        while not self._stopping:
            opened = self._rounds.get()
            if opened is None:
                return
            if opened.round not in self._ended:
                self._take_part(opened)
            self._known.discard(opened.round)
            self._ended.discard(opened.round)

    def _take_part(self, opened: RoundOpen) -> None:
        log.info("round taken up", extra={"round": opened.round, "model": opened.model})
        try:
            payload = self._train(opened)
        except Refused as e:
            self._refuse(opened, e)
            return
        except Exception as e:  # the round goes on without this device
            log.exception("training failed", extra={"round": opened.round})
            detail = f"{type(e).__name__}: {e}"
            self._refuse(opened, Refused(RefusalReason.INTERNAL, detail))
            return
        if payload is not None:
            self._answer(opened, payload)

    def _train(self, opened: RoundOpen) -> bytes | None:
        """The frame of this device's update; `None` where nobody waits for it any more."""
        started = self._clock.monotonic()
        folder = self._check_base(opened).folder
        with ExitStack() as sessions, _refusing(EngineError, RefusalReason.ENGINE_ERROR):
            spec = _read_spec(folder / training.SPEC)
            step = _open(folder / training.TRAIN, sessions)
            evaluate = _open(folder / training.EVALUATE, sessions)
            with _refusing(DataError, RefusalReason.BAD_DATA):
                samples = read_samples(self._settings.data, spec, step)
            try:
                weights = self._parameters(opened)
                with _refusing(DataError, RefusalReason.WRONG_PARAMETERS):
                    check_weights(weights, spec, step)
                learned = learn(
                    step,
                    evaluate,
                    spec,
                    weights=weights,
                    samples=samples,
                    settings=Settings(
                        epochs=opened.epochs,
                        batch_size=opened.batch_size,
                        learning_rate=opened.learning_rate,
                    ),
                    rng=np.random.default_rng(seed(opened.round, self._device)),
                    is_over=lambda: self._is_over(opened, started=started),
                )
            except Diverged as e:
                raise Refused(RefusalReason.DIVERGED, "the loss is not finite") from e
            except OutOfTime as e:
                if self._is_gone(opened):
                    return None
                detail = f"not done in {self._clock.monotonic() - started:.0f} s"
                raise Refused(RefusalReason.OUT_OF_TIME, detail) from e
        return self._frame(opened, learned, seconds=self._clock.monotonic() - started)

    def _check_base(self, opened: RoundOpen) -> Active:
        if opened.model not in self._settings.models:
            raise Refused(RefusalReason.NOT_OFFERED, f"[training] does not name {opened.model}")
        active = self._active(opened.model)
        if active is None:
            raise Refused(RefusalReason.NOT_INSTALLED, f"{opened.model} does not serve here")
        if active.digest != opened.base:
            raise Refused(RefusalReason.WRONG_BASE, f"{active.version} serves, {active.digest}")
        if not active.is_trainable:
            raise Refused(RefusalReason.NOT_TRAINABLE, f"{active.version} has no {training.TRAIN}")
        return active

    def _parameters(self, opened: RoundOpen) -> Arrays:
        topic = topics.round_parameters(self._site, opened.round)
        frame = self._await_frame(opened, topic)
        with _refusing(MessageError, RefusalReason.WRONG_PARAMETERS):
            header, weights = tensors.unpack(
                frame, ParametersHeader, max_bytes=messages.MAX_TENSOR_FRAME_BYTES, what=topic
            )
        if header.round != opened.round or tensors.digest(weights) != opened.parameters_sha256:
            detail = "sha256 or round differs from what was announced"
            raise Refused(RefusalReason.WRONG_PARAMETERS, detail)
        return weights

    def _await_frame(self, opened: RoundOpen, topic: str) -> bytes:
        deadline = self._clock.monotonic() + PARAMETERS_WAIT_S
        self._waits_for = opened.round
        # At QoS 0 nats-server keeps no consumer for it: as those of QoS 1 go, now and then it
        # forgets a message of anybody that it has acknowledged. What is retained comes anyway.
        self._link.subscribe(topic, qos=0)
        try:
            while not self._is_gone(opened) and self._clock.monotonic() < deadline:
                with suppress(queue.Empty):
                    return self._frames.get(timeout=_POLL_S)
        finally:
            self._waits_for = None
            self._link.unsubscribe(topic)
            _drain(self._frames)
        if self._is_gone(opened):
            raise OutOfTime
        raise Refused(RefusalReason.NO_PARAMETERS, f"nothing came on {topic}")

    def _is_over(self, opened: RoundOpen, *, started: float) -> bool:
        used_s = self._clock.monotonic() - started
        return used_s > self._settings.max_seconds or self._is_gone(opened)

    def _is_gone(self, opened: RoundOpen) -> bool:
        """Whether an answer would not be counted, or not be given."""
        closed = opened.closes_at <= self._clock.now_ms()
        return closed or self._stopping or opened.round in self._ended

    def _frame(self, opened: RoundOpen, learned: Learned, *, seconds: float) -> bytes:
        header = UpdateHeader(
            round=opened.round,
            device=self._device,
            parameters_sha256=opened.parameters_sha256,
            samples=learned.samples,
            loss_before=learned.loss_before,
            loss_after=learned.loss_after,
            seconds=seconds,
        )
        self._events(
            "round_trained",
            f"{opened.model}: loss {learned.loss_before:.4f} to {learned.loss_after:.4f}",
            round=opened.round,
            samples=learned.samples,
            seconds=round(seconds, 3),
        )
        return tensors.pack(header, learned.changes)

    def _refuse(self, opened: RoundOpen, refused: Refused) -> None:
        detail = str(refused)[:2000]
        self._events(
            "round_refused",
            detail,
            level="warning",
            round=opened.round,
            reason=refused.reason.value,
        )
        refusal = Refusal(
            round=opened.round, device=self._device, reason=refused.reason.value, detail=detail
        )
        self._answer(opened, messages.encode(refusal))

    def _answer(self, opened: RoundOpen, payload: bytes) -> None:
        """Keep, then say: a kill between the two costs nothing."""
        try:
            payload = self._sign(payload)
        except EdgekitError as e:
            log.error("answer cannot be signed", extra={"round": opened.round, "error": str(e)})
            return
        answer = Answer(round=opened.round, closes_at=opened.closes_at, payload=payload)
        try:
            self._answers.keep(answer)
        except EdgekitError as e:
            log.error("answer cannot be kept", extra={"round": opened.round, "error": str(e)})
        self._publish(answer)

    def _publish(self, answer: Answer) -> None:
        topic = topics.round_update(self._site, answer.round, self._device)
        try:
            sent = self._link.publish(topic, answer.payload)
        except MessageError as e:
            log.error("answer is too large", extra={"round": answer.round, "error": str(e)})
            return
        log.info("round answered", extra={"round": answer.round, "sent": sent})


def seed(round_id: str, device: str) -> int:
    """The seed of a device's shuffling in a round: another in each, and the same when repeated."""
    return int.from_bytes(hashlib.sha256(f"{round_id}/{device}".encode()).digest()[:8], "big")


@contextmanager
def _refusing(kind: type[EdgekitError], reason: RefusalReason) -> Iterator[None]:
    """Turn an error into a refusal."""
    try:
        yield
    except kind as e:
        raise Refused(reason, str(e)) from e


def _read_spec(path: Path) -> TrainingSpec:
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainingSpec)
    except (OSError, msgspec.MsgspecError) as e:
        raise Refused(RefusalReason.NOT_TRAINABLE, f"{path}: {e}") from e


def _open(graph: Path, sessions: ExitStack) -> Session:
    """Open a training graph, and close it with `sessions`."""
    session = ENGINES.get("onnxruntime").open(graph, options={})
    sessions.callback(session.close)
    return session


def _drain(frames: queue.Queue[bytes]) -> None:
    while not frames.empty():
        frames.get_nowait()
