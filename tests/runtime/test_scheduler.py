"""What waits is bounded, runs together where it may, and is answered exactly once."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import EngineError, Overloaded
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.serving import plan as plans
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.opener import open_variant
from edgekit_runtime.serving.plan import Plan, Workers
from edgekit_runtime.serving.runners import execute
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.serving.stats import EMPTY, Stats, figures
from tests import bundles
from tests.runtime.served import Answer, Wire, get, infer, load, output, serving, until, worker
from tests.runtime.test_serving_rules import Asked

SAMPLES = bundles.samples(4)
SMALL = {"small": bundles.mlp((bundles.FEATURES, 8, bundles.CLASSES), seed=7)}


class Gate:
    """A real session behind a gate, so that a test decides when a run ends."""

    def __init__(self, session: Session) -> None:
        self._run = session.run
        self.running = threading.Event()
        self.open = threading.Event()
        self.runs = 0

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.running.set()
        self.runs += 1
        assert self.open.wait(60)
        return self._run(inputs)


class Gates:
    """Measures models, and puts a gate before each that it has measured."""

    def __init__(self, *, cost_us: tuple[float, ...] = (1000.0,)) -> None:
        self.gates: list[Gate] = []
        self._cost_us = cost_us

    def __call__(
        self, session: Session, sample: Tensors, *, may_batch: bool, workers: Workers
    ) -> Plan:
        gate = Gate(session)
        cost_us = self._cost_us[min(len(self.gates), len(self._cost_us) - 1)]
        self.gates.append(gate)
        # The measured session is the one that will serve: only its `run` is held up.
        session.run = gate.run  # type: ignore[method-assign]
        return Plan(place="thread", max_batch=8, sizes=(1, 8), costs_us=(cost_us, cost_us * 4))

    def open(self) -> None:
        for gate in self.gates:
            gate.open.set()


@pytest.fixture
def gates() -> Iterator[Gates]:
    made = Gates()
    yield made
    made.open()


def gated(folder: Path, gates: Gates, *, queue_limit: int = 2, **options: Any) -> Models:
    """A table whose model waits at a gate once it was measured."""
    models = Models(Settings(queue_limit=queue_limit), measure=gates)
    load(models, folder, **options)
    return models


def test_a_model_is_measured_on_this_machine(tmp_path: Path) -> None:
    models = Models(measure=plans.measure)
    served = load(models, tmp_path)

    assert served.plan.cost_us > 0
    models.close()


@pytest.mark.parametrize("count", [1, 3])
def test_requests_are_not_batched_where_the_golden_inputs_cannot_prove_it(
    tmp_path: Path, count: int
) -> None:
    models = Models(measure=worker)
    served = load(models, tmp_path, samples_count=count)

    assert served.plan.max_batch == (1 if count == 1 else 8)
    models.close()


class Fragile:
    """A real session that refuses inputs with NaN."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.providers, self.placement = session.providers, session.placement

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if np.isnan(inputs["x"]).any():
            raise EngineError("this input cannot be run")
        return self._session.run(inputs)

    def close(self) -> None:
        self._session.close()


def test_one_bad_request_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    bundle = bundles.unpacked(tmp_path)
    session = Fragile(open_variant(bundle, bundle.manifest.variants[0]))
    good, bad = Asked(), Asked()
    good.inputs = {"x": SAMPLES[:1]}
    bad.inputs = {"x": np.full_like(SAMPLES[:1], np.nan)}

    results = execute(session, [good, bad], Stats()).results

    assert isinstance(results[1], EngineError)
    assert isinstance(results[0], dict)
    np.testing.assert_array_equal(results[0]["y"], bundles.directly(bundles.mlp(), SAMPLES[:1]))


def test_a_full_queue_answers_at_once(tmp_path: Path, gates: Gates) -> None:
    models = gated(tmp_path, gates)
    with serving(models) as server:
        wires = [Wire(server) for _ in range(3)]
        wires[0].send(infer(SAMPLES[:1]))
        assert gates.gates[0].running.wait(60)
        for wire in wires[1:]:
            wire.send(infer(SAMPLES[:1]))
        served = models.find("tiny")
        until(lambda: served.queue_depth >= 2)
        with Wire(server) as late:
            answer = late.ask(infer(SAMPLES[:1]))
        gates.open()

        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        for wire in wires:
            assert output(wire.answer()).shape == (1, bundles.CLASSES)
            wire.socket.close()
        (figure,) = models.figures()
        assert (figure.requests, figure.errors, figure.rejected) == (3, 0, 1)
        assert served.snapshot().executions == 2, "the two that waited ran together"


def test_a_missed_deadline_is_told_while_the_engine_still_runs(
    tmp_path: Path, gates: Gates
) -> None:
    models = gated(tmp_path, gates)
    with serving(models) as server, Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], parameters={"timeout": 2000}))
        assert answer.status == 504
        gates.open()

        assert output(wire.ask(infer(SAMPLES[:1]))).shape == (1, bundles.CLASSES)
        assert models.find("tiny").snapshot().errors == {"deadline": 1}


def test_a_request_that_cannot_make_its_deadline_is_refused_at_once(
    tmp_path: Path, gates: Gates
) -> None:
    models = gated(tmp_path, gates, queue_limit=20)
    with serving(models) as server:
        wires = [Wire(server) for _ in range(9)]
        wires[0].send(infer(SAMPLES[:1], parameters={"priority": 1}))
        assert gates.gates[0].running.wait(60)
        for wire in wires[1:]:
            wire.send(infer(SAMPLES[:1], parameters={"priority": 1}))
        served = models.find("tiny")
        until(lambda: served.queue_depth >= 8)
        with Wire(server) as late:
            # Eight requests of 500 us stand before it.
            answer = late.ask(infer(SAMPLES[:1], parameters={"timeout": 3000}))
            in_time = infer(SAMPLES[:1], parameters={"timeout": 60_000_000})
            late.send(in_time)
            until(lambda: served.queue_depth >= 9)
            gates.open()

            assert answer.status == 504
            assert "refused" in answer.error
            assert output(late.answer()).shape == (1, bundles.CLASSES)
        assert served.snapshot().refusals == {"deadline": 1}
        for wire in wires:
            wire.answer()
            wire.socket.close()


def test_the_more_urgent_request_is_answered_first(tmp_path: Path, gates: Gates) -> None:
    models = gated(tmp_path, gates, queue_limit=20)
    with serving(models) as server, Wire(server) as first:
        first.send(infer(SAMPLES[:1]))
        assert gates.gates[0].running.wait(60)
        served = models.find("tiny")
        wires = []
        # Of different row counts, so that the order of the runs shows in their sizes.
        for count, priority in ((1, 9), (2, 0), (3, 1)):
            wire = Wire(server)
            wires.append(wire)
            parameters = {"priority": priority, "variant": "float"}
            wire.send(infer(bundles.samples(count + 5), parameters=parameters))
            expected = len(wires)
            until(lambda: served.queue_depth >= expected)  # noqa: B023 - waited for here
        order = [job.rows - 5 for job in served.scheduler.waiting]
        gates.open()
        for wire in wires:
            assert wire.answer().status == 200
            wire.socket.close()
        first.answer()
    assert order == [3, 2, 1]


def test_a_request_whose_client_left_is_not_run(tmp_path: Path, gates: Gates) -> None:
    models = gated(tmp_path, gates)
    served = models.find("tiny")
    with serving(models) as server, Wire(server) as first, Wire(server) as after:
        first.send(infer(SAMPLES[:1]))
        assert gates.gates[0].running.wait(60)
        with Wire(server) as gone:
            gone.send(infer(SAMPLES[:2]))
            until(lambda: served.queue_depth >= 1)
            # A reset; a plain close only says that the client sends no more.
            gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        (job,) = served.scheduler.waiting
        until(lambda: job.settled)
        after.send(infer(SAMPLES[:1]))
        until(lambda: served.queue_depth >= 2)
        gates.open()
        assert output(after.answer()).shape == (1, bundles.CLASSES)
        assert output(first.answer()).shape == (1, bundles.CLASSES)
    assert served.snapshot().inferences == 2
    assert served.snapshot().cancelled == 1


# Variants.


def _variant_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json["parameters"]["variant"])


def test_a_deadline_chooses_the_most_accurate_variant_that_meets_it(tmp_path: Path) -> None:
    gates = Gates(cost_us=(50_000.0, 1000.0))
    models = gated(tmp_path, gates, beside=SMALL)
    gates.open()
    with serving(models) as server, Wire(server) as wire:
        assert _variant_of(wire.ask(infer(SAMPLES[:1]))) == "float"
        slow, fast = ({"timeout": limit} for limit in (30_000_000, 20_000))
        assert _variant_of(wire.ask(infer(SAMPLES[:1], parameters=slow))) == "float"
        until(lambda: len(gates.gates) == 2)
        gates.open()
        until(lambda: models.find("tiny").rungs[1].state == "ready")
        # What the plan says counts until runs have shown otherwise.
        rung = models.find("tiny").rungs[0]
        rung.pace, rung.spread = 1.0, 0.0

        assert _variant_of(wire.ask(infer(SAMPLES[:1], parameters=fast))) == "small"
        assert _variant_of(wire.ask(infer(SAMPLES[:1], parameters=slow))) == "float"


def test_a_pinned_variant_is_opened_and_answers(tmp_path: Path) -> None:
    models = Models(measure=worker)
    load(models, tmp_path, beside=SMALL)
    with serving(models) as server, Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], parameters={"variant": "small"}))

        assert _variant_of(answer) == "small"
        expected = bundles.directly(SMALL["small"], SAMPLES[:1])
        np.testing.assert_allclose(output(answer), expected, rtol=1e-5)
        unknown = wire.ask(infer(SAMPLES[:1], parameters={"variant": "int8"}))
        assert unknown.status == 404
        assert "'int8'" in unknown.error


def test_a_cascade_asks_the_better_variant_where_the_small_one_is_not_sure(
    tmp_path: Path,
) -> None:
    gates = Gates(cost_us=(2000.0, 1000.0))
    models = gated(tmp_path, gates, beside=SMALL)
    gates.open()
    served = models.find("tiny")
    with serving(models) as server, Wire(server) as wire:
        wire.ask(infer(SAMPLES[:1], parameters={"cascade": 0.0}))
        until(lambda: len(gates.gates) == 2)
        gates.open()
        until(lambda: served.rungs[1].state == "ready")

        unsure = wire.ask(infer(SAMPLES[:1], parameters={"cascade": 1.0}))
        sure = wire.ask(infer(SAMPLES[:1], parameters={"cascade": 0.0}))

        assert (_variant_of(unsure), _variant_of(sure)) == ("float", "small")
        np.testing.assert_array_equal(output(unsure), bundles.directly(bundles.mlp(), SAMPLES[:1]))


def test_answers_that_come_again_are_not_run_again(tmp_path: Path) -> None:
    models = Models(Settings(cache_bytes=1 << 20), measure=worker)
    served = load(models, tmp_path)
    with serving(models) as server, Wire(server) as wire:
        answers = [output(wire.ask(infer(SAMPLES[:1]))) for _ in range(3)]
        other = output(wire.ask(infer(SAMPLES[1:2])))
        assert served.cache is not None
        assert (served.cache.hits, served.cache.misses) == (2, 2)
        models.activate(
            models.load(bundles.unpacked(tmp_path, version="1.1.0", seed=1), verified_by="k"),
            replace=True,
        )
        fresh = output(wire.ask(infer(SAMPLES[:1])))

    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])
    assert (other != answers[0]).any()
    assert (fresh != answers[0]).any(), "a swap leaves no old answers behind"
    assert served.snapshot().executions == 2


# Memory.


def test_what_does_not_fit_into_the_budget_is_refused(tmp_path: Path) -> None:
    models = Models(Settings(memory_bytes=8 << 20), measure=worker)

    with pytest.raises(Overloaded, match="needs 16 MB, 8 MB more than the memory budget of 8 MB"):
        load(models, tmp_path)
    models.close()


def test_idle_models_make_room_and_come_back_when_they_are_asked(tmp_path: Path) -> None:
    models = Models(Settings(memory_bytes=40 << 20), measure=worker)
    served = [load(models, tmp_path, name=name, seed=seed) for seed, name in enumerate("abc")]
    with serving(models) as server, Wire(server) as wire:
        assert [s.is_ready for s in served] == [False, True, True], "the longest unused gave way"

        answer = wire.ask(infer(SAMPLES[:1], model="a"))

        np.testing.assert_array_equal(
            output(answer), bundles.directly(bundles.mlp(seed=0), SAMPLES[:1])
        )
        assert [s.is_ready for s in served] == [True, False, True]


def test_a_version_that_has_no_room_beside_the_old_one_takes_its_place_while_requests_wait(
    tmp_path: Path,
) -> None:
    models = Models(Settings(memory_bytes=20 << 20, queue_limit=1000), measure=worker)
    load(models, tmp_path)
    new = bundles.unpacked(tmp_path, version="1.1.0", seed=1)
    statuses: list[int] = []
    stop = threading.Event()
    with serving(models) as server:

        def ask() -> None:
            with Wire(server) as wire:
                while not stop.is_set():
                    statuses.append(wire.ask(infer(SAMPLES[:1])).status)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: len(statuses) > 20)
        models.activate(models.load(new, verified_by="k"), replace=True, keep=True)
        seen = len(statuses)
        until(lambda: len(statuses) > seen + 20)
        stop.set()
        thread.join()
        with Wire(server) as wire:
            answer = wire.ask(infer(SAMPLES[:1]))
    assert set(statuses) == {200}
    assert answer.json["model_version"] == "1.1.0"


def test_a_new_version_that_cannot_run_leaves_the_old_one_serving(tmp_path: Path) -> None:
    models = Models(Settings(memory_bytes=20 << 20), measure=worker)
    load(models, tmp_path)
    bad = bundles.unpacked(tmp_path, version="1.1.0", broken_golden=True)
    with serving(models) as server, Wire(server) as wire:
        with pytest.raises(EngineError):
            models.load(bad, verified_by="k")

        answer = wire.ask(infer(SAMPLES[:1]))

        assert answer.status == 200, answer.body
        assert answer.json["model_version"] == "1.0.0"


def test_the_version_before_is_back_at_once(tmp_path: Path) -> None:
    models = Models(measure=worker)
    old = load(models, tmp_path)
    new = models.load(bundles.unpacked(tmp_path, version="1.1.0", seed=1), verified_by="k")
    with serving(models) as server, Wire(server) as wire:
        models.activate(new, replace=True, keep=True)
        assert wire.ask(infer(SAMPLES[:1])).json["model_version"] == "1.1.0"

        models.activate(old, replace=True)

        answer = wire.ask(infer(SAMPLES[:1]))
        assert answer.json["model_version"] == "1.0.0"
        assert new.wait_closed(10)
        assert wire.ask(get("/v2/models/tiny")).json["versions"] == ["1.0.0"]


def test_an_engine_that_hangs_is_left_alone_and_another_takes_its_place(tmp_path: Path) -> None:
    gates = Gates()
    models = Models(Settings(run_limit_s=0.2), measure=gates)
    served = load(models, tmp_path)
    with serving(models) as server, Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1]))
        assert answer.status == 503
        assert "hung" in answer.error
        until(lambda: len(gates.gates) == 2)
        gates.open()
        until(lambda: served.is_ready)

        assert output(wire.ask(infer(SAMPLES[:1]))).shape == (1, bundles.CLASSES)
        assert served.default.losses == 1


@given(st.lists(st.integers(0, 10**11), max_size=50), st.integers(0, 50))
def test_figures_of_two_periods_add_up(took: list[int], cut: int) -> None:
    stats = Stats()

    def note(durations: list[int]) -> None:
        stats.answered([0] * len(durations), taken_ns=0, done_ns=0, now_ms=1)
        for ns in durations:
            stats.answered([0], taken_ns=0, done_ns=ns, now_ms=1)

    labels = ("m", "1.0.0", "v")
    note(took[:cut])
    middle = stats.snapshot()
    note(took[cut:])
    stats.failed("engine", took_ns=1)
    last = stats.snapshot()
    first_half = figures(middle, EMPTY, labels=labels)
    second_half = figures(last, middle, labels=labels)
    whole = figures(last, EMPTY, labels=labels)

    assert first_half.requests + second_half.requests == whole.requests
    assert sum(whole.latency_us.values()) == whole.requests - whole.errors
    for bucket, count in whole.latency_us.items():
        halves = first_half.latency_us.get(bucket, 0), second_half.latency_us.get(bucket, 0)
        assert sum(halves) == count
