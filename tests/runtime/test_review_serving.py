"""What happens at the seams: a version gives way, a worker stays away, nobody asks for figures."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edgekit.drift import reference
from edgekit.errors import ManifestError
from edgekit.signing import SigningKey
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.canary.trial import Past, Trial
from edgekit_runtime.daemon import engine_failures
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.live import Live
from edgekit_runtime.opening import Opened
from edgekit_runtime.serving.job import Job
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.plan import Plan, Workers
from edgekit_runtime.serving.repository import Installed, Source
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.settings import Settings
from tests import bundles
from tests.clock import ManualClock
from tests.runtime.served import Wire, infer, load, serving, until, worker
from tests.runtime.test_scheduler import SMALL, Gates
from tests.runtime.test_serving_rules import Asked

SAMPLES = bundles.samples(4)
ONE_MODEL = 20 << 20


@pytest.fixture
def gates() -> Iterator[Gates]:
    made = Gates()
    yield made
    made.open()


class Slow:
    """Measures at once the first times, and later when it is let, or not at all."""

    def __init__(self, *, free: int, error: Exception | None = None) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self._free = free
        self._error = error

    def __call__(
        self, session: Session, sample: Tensors, *, may_batch: bool, workers: Workers
    ) -> Plan:
        if self._free == 0:
            self.asked.set()
            if self._error is not None:
                raise self._error
            assert self.go_on.wait(60)
        else:
            self._free -= 1
        return worker(session, sample, may_batch=may_batch, workers=workers)


class GateBefore(Gates):
    """Puts a gate before one of the sessions that it measures, counted from 0."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._left = number

    def __call__(
        self, session: Session, sample: Tensors, *, may_batch: bool, workers: Workers
    ) -> Plan:
        self._left -= 1
        measure = super().__call__ if self._left == -1 else worker
        return measure(session, sample, may_batch=may_batch, workers=workers)

    def open_when_held(self, served: Served) -> None:
        """Let the run go on as soon as its version is asked to make room for another."""

        def wait() -> None:
            until(lambda: served.scheduler.is_held)
            self.open()

        threading.Thread(target=wait).start()


# Versions.


def _live(models: Models, key: SigningKey) -> Live[Served]:
    return Live(models, keys=[key.public], engine_failures=engine_failures, clock=ManualClock())


def test_a_version_that_gave_way_is_not_taken_for_one_that_is_open(tmp_path: Path) -> None:
    key = SigningKey.generate()
    gate = GateBefore(0)
    models = Models(Settings(memory_bytes=ONE_MODEL), measure=gate)
    live = _live(models, key)
    old, new = (
        bundles.unpacked(tmp_path, version=version, key=key).path for version in ("1.0.0", "1.1.0")
    )
    live.show("tiny", live.load(old))
    with serving(models) as server, Wire(server) as wire:
        wire.send(infer(SAMPLES[:1]))
        assert gate.gates[0].running.wait(60)
        gate.open_when_held(models.find("tiny"))
        live.show("tiny", live.load(new))

        assert wire.answer().status == 200
        assert live.kept("tiny", old) is None


def test_a_version_that_another_way_closed_is_not_taken_for_one_that_is_open(
    tmp_path: Path,
) -> None:
    key = SigningKey.generate()
    models = Models(measure=worker)
    live = _live(models, key)
    found = [
        bundles.unpacked(tmp_path, version=version, key=key)
        for version in ("1.0.0", "1.1.0", "1.2.0")
    ]
    for bundle in found[:2]:
        live.show("tiny", live.load(bundle.path))
    assert live.kept("tiny", found[0].path) is not None

    models.activate(models.load(found[2], verified_by="k"), replace=True)

    assert live.kept("tiny", found[0].path) is None
    models.close()


def test_a_version_that_was_opened_anew_is_the_one_that_is_compared_counted_and_kept(
    tmp_path: Path,
) -> None:
    """A reload, asked for over HTTP or from afar, changes nothing of the next update."""
    key = SigningKey.generate()
    models = Models(measure=worker)
    found = [bundles.unpacked(tmp_path, version=v, key=key) for v in ("1.0.0", "1.1.0")]
    compared: list[Served] = []
    counted: list[Served] = []

    def compare(old: Served, new: Served, spent_s: float) -> Trial:
        compared.extend((old, new))
        return Trial(old, new, settings=CanarySection(), past=Past(spent_s=spent_s))

    def count(served: Served) -> int:
        counted.append(served)
        return engine_failures(served)

    live: Live[Served] = Live(
        models, keys=[key.public], engine_failures=count, compare=compare, clock=ManualClock()
    )
    live.show("tiny", live.load(found[0].path))
    first = models.find("tiny")
    opened = Opened(found[0], key.public.id)
    repository = Installed(models, lambda: [Source("tiny", "1.0.0", lambda: opened)])
    repository.unload("tiny")
    repository.load("tiny")
    again = models.find("tiny")
    new = live.load(found[1].path)
    trial = live.try_out("tiny", new)

    assert again is not first
    assert compared == [again, new.served]
    assert trial.verdict() is None
    trial.close()
    live.engine_failures("tiny")
    live.show("tiny", new)
    assert counted == [again]
    kept = live.kept("tiny", found[0].path)
    assert kept is not None
    assert kept.served is again
    models.close()


def test_a_version_that_gave_way_goes_on_where_the_new_one_is_discarded(tmp_path: Path) -> None:
    gate = GateBefore(0)
    models = Models(Settings(memory_bytes=ONE_MODEL), measure=gate)
    old = load(models, tmp_path)
    with serving(models) as server, Wire(server) as wire:
        wire.send(infer(SAMPLES[:1]))
        assert gate.gates[0].running.wait(60)
        gate.open_when_held(old)
        new = models.load(bundles.unpacked(tmp_path, version="1.1.0"), verified_by="k")
        assert wire.answer().status == 200
        assert old.scheduler.is_held

        models.discard(new)

        until(lambda: old.is_ready)
        assert wire.ask(infer(SAMPLES[:1])).json["model_version"] == "1.0.0"


def test_a_version_that_gave_way_is_opened_again_before_anybody_asks(tmp_path: Path) -> None:
    gate = GateBefore(0)
    models = Models(Settings(memory_bytes=ONE_MODEL), measure=gate)
    old = load(models, tmp_path)
    damaged = bundles.unpacked(tmp_path, version="1.1.0", extra={reference.ENTRY: b"none"})
    with serving(models) as server, Wire(server) as wire:
        wire.send(infer(SAMPLES[:1]))
        assert gate.gates[0].running.wait(60)
        gate.open_when_held(old)
        with pytest.raises(ManifestError):
            models.load(damaged, verified_by="k")

        until(lambda: old.is_ready)
        assert wire.answer().status == 200


def test_a_bundle_that_is_refused_late_leaves_no_engine_open(tmp_path: Path) -> None:
    models = Models(measure=worker)
    damaged = bundles.unpacked(tmp_path, name="late", extra={reference.ENTRY: b"none"})

    with pytest.raises(ManifestError):
        models.load(damaged, verified_by="k")

    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("late ")])
    models.close()


def test_a_model_that_is_taken_away_while_it_comes_back_answers_what_waited(
    tmp_path: Path,
) -> None:
    slow = Slow(free=2)
    models = Models(Settings(memory_bytes=ONE_MODEL), measure=slow)
    evicted = load(models, tmp_path, name="a")
    load(models, tmp_path, name="b")
    with serving(models) as server, Wire(server) as wire:
        wire.send(infer(SAMPLES[:1], model="a"))
        assert slow.asked.wait(60)
        models.remove("a", "1.0.0")
        slow.go_on.set()

        assert wire.answer().status == 503
        assert evicted.wait_closed(10)


def test_requests_that_wait_for_a_version_to_come_back_are_answered_by_the_next_one(
    tmp_path: Path,
) -> None:
    slow = Slow(free=3)
    models = Models(Settings(memory_bytes=2 * ONE_MODEL), measure=slow)
    old = load(models, tmp_path)
    load(models, tmp_path, name="b")
    new = models.load(bundles.unpacked(tmp_path, version="1.1.0", seed=1), verified_by="k")
    assert not old.is_ready, "it gave way to the new one"
    with serving(models) as server, Wire(server) as wire:
        wire.send(infer(SAMPLES[:1]))
        assert slow.asked.wait(60)
        models.activate(new, replace=True)
        slow.go_on.set()

        assert wire.answer().json["model_version"] == "1.1.0"


# Workers.


def test_what_waits_is_told_at_once_that_the_circuit_is_open(tmp_path: Path, gates: Gates) -> None:
    models = Models(Settings(run_limit_s=0.1), measure=gates)
    load(models, tmp_path)
    alone = infer(bundles.samples(8))
    with serving(models) as server, ExitStack() as stack:
        wires = [stack.enter_context(Wire(server)) for _ in range(6)]
        for wire in wires:
            wire.send(alone)
        errors = [wire.answer().error for wire in wires]

    hung = [error for error in errors if "cannot answer now" not in error]
    assert len(hung) < len(errors)
    assert all("hung" in error for error in errors)
    assert len(gates.gates) == 3, "two new starts at once, then none for a while"


def test_an_error_that_nobody_foresaw_while_a_variant_comes_back_is_told(tmp_path: Path) -> None:
    models = Models(
        Settings(memory_bytes=ONE_MODEL), measure=Slow(free=2, error=RuntimeError("strange"))
    )
    load(models, tmp_path, name="a")
    load(models, tmp_path, name="b")
    with serving(models) as server, Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], model="a"))

        assert answer.status == 503
        assert "strange" in answer.error


def test_want_of_memory_does_not_open_the_circuit(tmp_path: Path) -> None:
    gate = GateBefore(1)
    models = Models(Settings(memory_bytes=ONE_MODEL), measure=gate)
    for name in "ba":
        load(models, tmp_path, name=name)
    with serving(models) as server, Wire(server) as busy, Wire(server) as wire:
        busy.send(infer(SAMPLES[:1], model="a"))
        assert gate.gates[0].running.wait(60)
        refused = [wire.ask(infer(SAMPLES[:1], model="b")) for _ in range(4)]
        gate.open()
        assert busy.answer().status == 200

        assert [answer.status for answer in refused] == [503] * 4
        assert wire.ask(infer(SAMPLES[:1], model="b")).status == 200


# Requests.


def test_a_request_for_what_there_is_not_is_no_failure_of_the_engine(tmp_path: Path) -> None:
    models = Models(measure=worker)
    served = load(models, tmp_path)
    with serving(models) as server, Wire(server) as wire:
        for _ in range(3):
            assert wire.ask(infer(SAMPLES[:1], parameters={"variant": "none"})).status == 404

        assert engine_failures(served) == 0


def test_requests_sent_ahead_on_many_connections_are_all_answered(
    tmp_path: Path, gates: Gates
) -> None:
    """Each answer brings the next request of its connection with it."""

    def measure(session: Session, sample: Tensors, *, may_batch: bool, workers: Workers) -> Plan:
        if not gates.gates:
            return gates(session, sample, may_batch=may_batch, workers=workers)
        return Plan(place="loop", max_batch=1, costs_us=(10.0,))

    models = Models(Settings(queue_limit=200), measure=measure)
    load(models, tmp_path, beside=SMALL)
    pinned = infer(SAMPLES[:1], parameters={"variant": "small"})
    with serving(models) as server, ExitStack() as stack, Wire(server) as first:
        assert first.ask(pinned).status == 200
        first.send(infer(SAMPLES[:1]))
        assert gates.gates[0].running.wait(60)
        wires = [stack.enter_context(Wire(server)) for _ in range(100)]
        for wire in wires:
            wire.send(pinned * 3)
        until(lambda: models.find("tiny").queue_depth == len(wires))
        gates.open()

        assert first.answer().status == 200
        assert {wire.answer().status for wire in wires for _ in range(3)} == {200}


def test_a_deadline_that_was_set_again_is_missed_once_or_not_at_all() -> None:
    late: list[Job] = []

    async def handed_on() -> Asked:
        loop = asyncio.get_running_loop()
        job = Asked()
        job.deadline_ns = job.arrived_ns + 20_000_000
        job.limit(loop, late.append)
        job.limit(loop, late.append)
        job.settle({}, None)
        await asyncio.sleep(0.05)
        return job

    job = asyncio.run(handed_on())

    assert len(job.answers) == 1
    assert late == []


# Figures.


def test_a_model_that_was_taken_away_is_forgotten_though_nobody_reads_figures(
    tmp_path: Path,
) -> None:
    models = Models(measure=worker)
    gone = weakref.ref(load(models, tmp_path, name="a"))
    models.remove("a", "1.0.0").wait_closed(10)

    load(models, tmp_path, name="b")

    gc.collect()
    assert gone() is None
    models.close()
