"""A device of a fleet, simulated behind the real interface: real MQTT, real HTTP, no engine."""

from __future__ import annotations

import hashlib
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from edgekit import messages, tensors, topics
from edgekit.link import Broker, MqttLink, Will
from edgekit.messages import (
    Ack,
    Desired,
    Event,
    ModelFigures,
    ModelState,
    ParametersHeader,
    Refusal,
    Reported,
    Resources,
    RoundOpen,
    Status,
    Telemetry,
    UpdateHeader,
    Wanted,
)
from edgekit.tensors import Arrays

Behaviour = Literal["good", "failing", "silent"]
Trainer = Callable[[RoundOpen, Arrays], "tuple[UpdateHeader, Arrays] | Refusal | bytes | None"]


class DeviceSimulator:
    """Takes what is desired, fetches it for real, and reports.

    Args:
        behaviour: `good` serves what it is told, `failing` never passes its golden inputs,
            `silent` takes nothing.
        trains: models it has data for.
        trainer: answers a round.
    """

    def __init__(
        self,
        broker: str,
        device: str,
        *,
        site: str = "default",
        profile: str = "generic-x86_64",
        repository: str = "",
        behaviour: Behaviour = "good",
        boot: str = "00000000000000aa",
        trains: Sequence[str] = (),
        trainer: Trainer | None = None,
    ) -> None:
        self.site, self.device, self.boot, self.profile = site, device, boot, profile
        self.behaviour: Behaviour = behaviour
        self.models: dict[str, ModelState] = {}
        self.desired: list[Desired] = []
        self.acked: dict[str, int] = {}
        self.connected = threading.Event()
        self._serial = 0
        self._trains = tuple(trains)
        self._trainer = trainer
        self._repository = repository
        self._opened: dict[str, RoundOpen] = {}
        self._parameters: dict[str, Arrays] = {}
        gone = messages.encode(Status(online=False, boot=boot))
        self.link = MqttLink(
            Broker.parse(broker),
            client_id=f"{site}_{device}",
            filters=[
                self.topic(topics.DESIRED),
                self.topic(topics.ACK),
                topics.every_round_open(site),
                f"{topics.ROOT}/{site}/rounds/+/parameters",
            ],
            on_message=self._receive,
            on_connect=self._connect,
            will=Will(self.topic(topics.STATUS), gone),
        )

    def topic(self, leaf: str) -> str:
        return topics.device(self.site, self.device, leaf)

    def __enter__(self) -> DeviceSimulator:
        self.link.start()
        assert self.connected.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.publish(topics.STATUS, Status(online=False, boot=self.boot), retain=True)
        self.link.close()

    def publish(self, leaf: str, body: messages.Message, *, retain: bool = False) -> None:
        self.send(self.topic(leaf), messages.encode(body), retain=retain)

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        while not self.link.publish(topic, payload, retain=retain):
            time.sleep(0.005)

    def report(self) -> None:
        body = Reported(
            boot=self.boot, at=1, serial=self._serial, models=self.models, trains=self._trains
        )
        self.publish(topics.REPORTED, body, retain=True)

    def serves(self, model: str, version: str, digest: str) -> None:
        """Say that a version is installed already."""
        self.models[model] = ModelState(version=version, digest=digest, state="confirmed")
        self.report()

    def deliver(self, seqs: Sequence[int]) -> None:
        """Send telemetry as an outbox does: again and again, until all is acknowledged."""
        deadline = time.monotonic() + 30
        while self.acked.get(self.boot, 0) < max(seqs):
            assert time.monotonic() < deadline, f"acknowledged: {self.acked}"
            for seq in seqs:
                if seq > self.acked.get(self.boot, 0):
                    self.publish(topics.TELEMETRY, self.telemetry(seq))
            again = time.monotonic() + 1.5
            while self.acked.get(self.boot, 0) < max(seqs) and time.monotonic() < again:
                time.sleep(0.01)

    def telemetry(self, seq: int, *, floor: int = 1, requests: int = 10) -> Telemetry:
        figures = ModelFigures(
            model="tiny",
            version="1.0.0",
            variant="float",
            requests=requests,
            errors=0,
            engine_us=requests * 900,
            latency_us={24: requests - 1, 30: 1},
        )
        return Telemetry(
            boot=self.boot,
            seq=seq,
            floor=floor,
            at=1,
            period_s=10.0,
            models=(figures,),
            resources=Resources(cpu_s=1.0, rss_bytes=50_000_000, temperature_c=48.5),
        )

    def event(self, seq: int, message: str) -> Event:
        return Event(boot=self.boot, seq=seq, floor=1, at=1, kind="test", message=message)

    def _connect(self) -> None:
        born = Status(online=True, boot=self.boot, profile=self.profile, version="0.1.0")
        self.link.publish(self.topic(topics.STATUS), messages.encode(born), retain=True)
        body = Reported(
            boot=self.boot, at=1, serial=self._serial, models=self.models, trains=self._trains
        )
        self.link.publish(self.topic(topics.REPORTED), messages.encode(body), retain=True)
        self.connected.set()

    def _receive(self, topic: str, payload: bytes) -> None:
        leaf = topic.removeprefix(self.topic(""))
        if leaf == topics.ACK:
            ack = messages.decode(payload, Ack, topic=topic)
            self.acked[ack.boot] = max(ack.seq, self.acked.get(ack.boot, 0))
        elif leaf == topics.DESIRED:
            self._take(messages.decode(payload, Desired, topic=topic))
        elif payload and topic.endswith(f"/{topics.OPEN}"):
            opened = messages.decode(payload, RoundOpen, topic=topic)
            self._opened[opened.round] = opened
            self._train(opened.round)
        elif payload and topic.endswith(f"/{topics.PARAMETERS}"):
            header, arrays = tensors.unpack(
                payload, ParametersHeader, max_bytes=1 << 24, what=topic
            )
            self._parameters[header.round] = arrays
            self._train(header.round)

    def _take(self, desired: Desired) -> None:
        self.desired.append(desired)
        if self.behaviour == "silent" or desired.serial < self._serial:
            return
        self._serial = desired.serial
        for model, wanted in desired.models.items():
            before = self.models.get(model, ModelState())
            if before.digest != wanted.digest:
                self.models[model] = self._update(before, wanted)
        self.report()

    def _update(self, before: ModelState, wanted: Wanted) -> ModelState:
        with urllib.request.urlopen(self._repository + wanted.url, timeout=10) as answer:
            content = answer.read()
        assert hashlib.sha256(content).hexdigest() == wanted.sha256
        assert len(content) == wanted.size_bytes
        good = self.behaviour == "good"
        return ModelState(
            version=wanted.version if good else before.version,
            digest=wanted.digest if good else before.digest,
            state="confirmed" if good else "failed",
            target=wanted.version,
            target_digest=wanted.digest,
            reason=None if good else "golden_mismatch",
        )

    def _train(self, round_id: str) -> None:
        opened, parameters = self._opened.get(round_id), self._parameters.get(round_id)
        if opened is None or parameters is None or self._trainer is None:
            return
        if self.device not in opened.participants or self.device in opened.answered:
            return
        answer = self._trainer(opened, parameters)
        topic = topics.round_update(self.site, round_id, self.device)
        if isinstance(answer, bytes):
            self.link.publish(topic, answer)
        elif isinstance(answer, Refusal):
            self.link.publish(topic, messages.encode(answer))
        elif answer is not None:
            self.link.publish(topic, tensors.pack(*answer))


def constant_trainer(device: str, *, step: float, samples: int) -> Trainer:
    """Moves every weight by `step`, and says that the loss has halved."""

    def train(opened: RoundOpen, parameters: Arrays) -> tuple[UpdateHeader, Arrays]:
        header = UpdateHeader(
            round=opened.round,
            device=device,
            parameters_sha256=opened.parameters_sha256,
            samples=samples,
            loss_before=1.0,
            loss_after=0.5,
            seconds=0.1,
        )
        moved = {name: np.full_like(array, step) for name, array in parameters.items()}
        return header, moved

    return train
