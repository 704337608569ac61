"""Rounds on a device: one answer each, with real graphs in the real engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import tensors, topics, training
from edgekit.bundle import Bundle
from edgekit.clock import SystemClock
from edgekit.link import Qos
from edgekit.messages import ParametersHeader, Refusal, RoundOpen, UpdateHeader
from edgekit.signing import SigningKey
from edgekit.tensors import Arrays
from edgekit.training import TrainingSpec
from edgekit_runtime import trainer as trainers
from edgekit_runtime.answers import Answer, Answers
from edgekit_runtime.config import TrainingSection
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.learner import Settings, batches, learn, mean_loss, read_samples
from edgekit_runtime.live import Active
from edgekit_runtime.telemetry import Level
from edgekit_runtime.trainer import REFUSAL_MEANING, RefusalReason, Trainer
from tests import trainable

DEVICE, SITE, ROUND = "board-1", "demo", "r1"
PATIENCE_S = 20.0


class Broker:
    """The link of one device, which comes and goes, and what the coordinator retained."""

    def __init__(self) -> None:
        self.up = True
        self.answers: list[bytes] = []
        self.retained: dict[str, bytes] = {}
        self.subscribed: set[str] = set()
        self.trainer: Trainer | None = None

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        assert topic.startswith(f"edgekit/v1/{SITE}/rounds/")
        assert topic.endswith(f"/update/{DEVICE}")
        if self.up:
            self.answers.append(payload)
        return self.up

    def subscribe(self, topic: str, *, qos: Qos = 1) -> None:
        self.subscribed.add(topic)
        assert self.trainer is not None
        if topic in self.retained:
            self.trainer.parameters(topic.split("/")[-2], self.retained[topic])

    def unsubscribe(self, topic: str) -> None:
        self.subscribed.discard(topic)


class Device:
    """A trainer with its data, its bundle and its broker."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.broker = Broker()
        self.told: list[str] = []
        self.data = folder / "data.npz"
        np.savez(self.data, **trainable.samples())
        with Bundle.open(base) as bundle:
            slot = folder / "slot"
            if not slot.exists():
                bundle.unpack(slot)
            self.active: Active | None = Active("1.0.0", bundle.digest, slot, is_trainable=True)
            self.base = bundle.digest
        self.weights = trainable.parameters(base)

    def start(self, *, max_seconds: float = 60.0, models: tuple[str, ...] = ("clouds",)) -> None:
        self.trainer = Trainer(
            site=SITE,
            device=DEVICE,
            settings=TrainingSection(data=self.data, models=models, max_seconds=max_seconds),
            answers=Answers(self.folder / "rounds"),
            active=lambda _: self.active,
            link=self.broker,
            events=self.tell,
            clock=SystemClock(),
        )
        self.broker.trainer = self.trainer
        self.trainer.start()

    def tell(self, kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        self.told.append(kind)

    def round(self, **changes: Any) -> RoundOpen:
        opened = RoundOpen(
            round=ROUND,
            site=SITE,
            model="clouds",
            base=self.base,
            parameters_sha256=tensors.digest(self.weights),
            participants=("board-0", DEVICE),
            epochs=3,
            batch_size=16,
            learning_rate=0.05,
            closes_at=SystemClock().now_ms() + 60_000,
        )
        return msgspec.structs.replace(opened, **changes)

    def offer(self, opened: RoundOpen, *, weights: Arrays | None = None) -> None:
        frame = tensors.pack(ParametersHeader(round=opened.round), weights or self.weights)
        self.broker.retained[topics.round_parameters(SITE, opened.round)] = frame
        self.trainer.opened(opened)

    def answer(self) -> bytes:
        deadline = time.monotonic() + PATIENCE_S
        while not self.broker.answers:
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.01)
        return self.broker.answers[-1]

    def refusal(self) -> str:
        return msgspec.json.decode(self.answer(), type=Refusal).reason


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainable.write(tmp_path_factory.mktemp("base"), key=SigningKey.generate())


@pytest.fixture
def device(tmp_path: Path, base: Path) -> Iterator[Device]:
    made = Device(tmp_path, base)
    made.start()
    yield made
    made.trainer.close(timeout_s=PATIENCE_S)


def test_a_device_answers_with_what_training_changed(device: Device) -> None:
    device.offer(device.round())

    header, changes = tensors.unpack(
        device.answer(), UpdateHeader, max_bytes=1 << 20, what="update"
    )
    assert (header.round, header.device, header.samples) == (ROUND, DEVICE, 96)
    assert header.loss_after < header.loss_before / 2
    assert set(changes) == set(device.weights)
    assert any(np.abs(change).max() > 0.01 for change in changes.values())
    assert device.told == ["round_trained"]
    assert not device.broker.subscribed


def test_the_loss_said_is_the_loss_of_what_was_sent(device: Device) -> None:
    device.offer(device.round())
    header, changes = tensors.unpack(
        device.answer(), UpdateHeader, max_bytes=1 << 20, what="update"
    )
    assert device.active is not None
    graph = device.active.folder / training.EVALUATE
    session = ENGINES.get("onnxruntime").open(graph, options={})
    new = {name: device.weights[name] + changes[name] for name in changes}
    loss = session.run({**trainable.samples(), **new})["loss"]

    assert float(loss) == pytest.approx(header.loss_after, rel=1e-3)
    session.close()


def test_a_round_for_others_is_left_alone(device: Device) -> None:
    device.offer(device.round(participants=("board-7",)))
    device.offer(device.round(round="r2"))
    device.answer()

    assert len(device.broker.answers) == 1


def test_a_round_is_answered_once_also_after_a_restart(device: Device) -> None:
    device.offer(device.round())
    first = device.answer()
    device.trainer.close(timeout_s=PATIENCE_S)
    device.start()
    device.offer(device.round())

    assert device.broker.answers == [first, first]
    assert device.told == ["round_trained"]


def test_an_answer_is_given_again_until_the_coordinator_says_that_it_came(device: Device) -> None:
    device.offer(device.round())
    first = device.answer()
    deadline = time.monotonic() + PATIENCE_S
    while len(device.broker.answers) < 2:
        assert time.monotonic() < deadline, "the answer was given once only"
        device.offer(device.round(answered=("board-0",)))
    device.offer(device.round(answered=("board-0", DEVICE)))

    assert device.broker.answers == [first, first]


def test_an_answer_given_without_a_link_is_sent_when_there_is_one(device: Device) -> None:
    device.broker.up = False
    device.offer(device.round())
    deadline = time.monotonic() + PATIENCE_S
    while not device.told and time.monotonic() < deadline:
        time.sleep(0.01)
    device.trainer.close(timeout_s=PATIENCE_S)
    assert device.broker.answers == []

    device.broker.up = True
    device.start()
    device.offer(device.round())

    assert len(device.broker.answers) == 1


def without_model(device: Device) -> None:
    device.active = None


def not_trainable(device: Device) -> None:
    assert device.active is not None
    device.active = device.active._replace(is_trainable=False)


def no_data(device: Device) -> None:
    device.data.unlink()


def foreign_data(device: Device) -> None:
    np.savez(device.data, x=np.zeros((4, 3), np.float32), labels=np.zeros(4, np.int64))


def pickled_data(device: Device) -> None:
    np.savez(device.data, x=np.array([object()]), labels=np.zeros(1, np.int64))


def no_labels(device: Device) -> None:
    np.savez(device.data, x=np.zeros((4, 16), np.float32))


def infinite_data(device: Device) -> None:
    data = trainable.samples()
    np.savez(device.data, x=data["x"] * np.float32(np.inf), labels=data["labels"])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (without_model, RefusalReason.NOT_INSTALLED),
        (not_trainable, RefusalReason.NOT_TRAINABLE),
        (no_data, RefusalReason.BAD_DATA),
        (foreign_data, RefusalReason.BAD_DATA),
        (pickled_data, RefusalReason.BAD_DATA),
        (no_labels, RefusalReason.BAD_DATA),
        (infinite_data, RefusalReason.DIVERGED),
    ],
)
def test_what_is_missing_on_the_device_is_a_refusal(
    device: Device, broken: Callable[[Device], None], reason: RefusalReason
) -> None:
    broken(device)
    device.offer(device.round())

    assert device.refusal() == reason.value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "another"}, RefusalReason.NOT_OFFERED),
        ({"base": "sha256:" + "0" * 64}, RefusalReason.WRONG_BASE),
        ({"parameters_sha256": "0" * 64}, RefusalReason.WRONG_PARAMETERS),
        ({"learning_rate": 100.0, "epochs": 50}, RefusalReason.DIVERGED),
    ],
)
def test_a_round_that_does_not_fit_is_a_refusal(
    device: Device, changes: dict[str, Any], reason: RefusalReason
) -> None:
    device.offer(device.round(**changes))

    assert device.refusal() == reason.value


@pytest.mark.parametrize("kind", ["shape", "name", "dtype", "nan"])
def test_parameters_that_do_not_fit_the_graph_are_a_refusal(device: Device, kind: str) -> None:
    weights = dict(device.weights)
    name = sorted(weights)[0]
    array = weights.pop(name)
    weights |= {
        "shape": {name: np.zeros((3, 3), np.float32)},
        "name": {"other": array},
        "dtype": {name: array.astype(np.float64)},
        "nan": {name: array * np.float32(np.nan)},
    }[kind]
    device.offer(device.round(parameters_sha256=tensors.digest(weights)), weights=weights)

    assert device.refusal() == "wrong_parameters"


def test_a_frame_that_is_garbage_is_a_refusal(device: Device) -> None:
    opened = device.round()
    device.broker.retained[topics.round_parameters(SITE, ROUND)] = b"garbage"
    device.trainer.opened(opened)

    assert device.refusal() == "wrong_parameters"


def test_parameters_that_never_come_are_a_refusal(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "PARAMETERS_WAIT_S", 0.1)
    device.trainer.opened(device.round())

    assert device.refusal() == "no_parameters"


def test_a_budget_that_is_too_small_is_a_refusal(tmp_path: Path, base: Path) -> None:
    device = Device(tmp_path, base)
    device.start(max_seconds=1e-6)
    device.offer(device.round())

    assert device.refusal() == "out_of_time"
    device.trainer.close(timeout_s=PATIENCE_S)


def test_nothing_is_said_in_a_round_that_is_over(device: Device) -> None:
    device.offer(device.round(closes_at=1))
    device.trainer.opened(device.round(round="r2"))
    device.trainer.ended("r2")
    device.offer(device.round(round="r3"))
    header, _ = tensors.unpack(device.answer(), UpdateHeader, max_bytes=1 << 20, what="update")

    assert header.round == "r3"
    assert len(device.broker.answers) == 1


def test_every_refusal_has_a_meaning() -> None:
    assert set(REFUSAL_MEANING) == set(RefusalReason)


def test_answers_that_nobody_counts_any_more_are_deleted(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    answers.keep(Answer(round="old", closes_at=10, payload=b"x"))
    answers.keep(Answer(round="new", closes_at=30, payload=b"y"))
    (tmp_path / "odd.answer").write_bytes(b"\xff")

    answers.prune(now_ms=20)

    assert answers.find("old") is None
    assert answers.find("new") == Answer(round="new", closes_at=30, payload=b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["new.answer"]


def test_the_same_seed_gives_the_same_weights(device: Device) -> None:
    assert device.active is not None
    folder = device.active.folder
    spec = msgspec.json.decode((folder / training.SPEC).read_bytes(), type=TrainingSpec)
    engine = ENGINES.get("onnxruntime")
    step = engine.open(folder / training.TRAIN, options={})
    evaluate = engine.open(folder / training.EVALUATE, options={})
    samples = read_samples(device.data, spec, step)

    def run(seed: int) -> Arrays:
        return learn(
            step,
            evaluate,
            spec,
            weights=device.weights,
            samples=samples,
            settings=Settings(epochs=2, batch_size=10, learning_rate=0.01),
            rng=np.random.default_rng(seed),
            is_over=lambda: False,
        ).changes

    assert tensors.encode(run(1)) == tensors.encode(run(1))
    assert tensors.encode(run(1)) != tensors.encode(run(2))
    losses = [
        mean_loss(evaluate, samples, device.weights, batch_size=size, is_over=lambda: False)
        for size in (7, 96, 1000)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    step.close()
    evaluate.close()


@given(count=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 9))
def test_an_epoch_uses_each_sample_at_most_once_in_full_batches(
    count: int, size: int, seed: int
) -> None:
    found = [list(batch) for batch in batches(count, size, rng=np.random.default_rng(seed))]
    flat = [position for batch in found for position in batch]

    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(count))
    if count <= size:
        assert [len(batch) for batch in found] == [count]
    else:
        assert [len(batch) for batch in found] == [size] * (count // size)
