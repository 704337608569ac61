"""What waits is bounded, runs together where it may, and is answered exactly once."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import EngineError
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.serving import plan as plans
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.plan import INLINE_LIMIT_US, Plan, decide
from edgekit_runtime.serving.scheduler import Job, Outputs, Worker, batch_length, execute
from edgekit_runtime.serving.server import new_event_loop
from edgekit_runtime.serving.stats import EMPTY, Stats, figures
from tests import bundles
from tests.runtime.served import Wire, infer, load, output, serving, until, worker

SAMPLES = bundles.samples(4)
LOOP = new_event_loop()
LOOP.close()


class Asked(Job):
    """A job that keeps its answers."""

    def __init__(self, inputs: Tensors, *, rows: int = 1, shapes: str = "") -> None:
        super().__init__(inputs, rows, shapes, LOOP)
        self.answers: list[Outputs | Exception] = []

    def done(self, result: Outputs | Exception) -> None:
        self.answers.append(result)


class Gate:
    """A real session behind a gate, so that a test decides when a run ends."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.running = threading.Event()
        self.open = threading.Event()
        self.inputs, self.outputs = session.inputs, session.outputs
        self.providers = session.providers

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        self.running.set()
        assert self.open.wait(20)
        if np.isnan(inputs["x"]).any():
            raise EngineError("this input cannot be run")
        return self._session.run(inputs)

    def close(self) -> None:
        self._session.close()


@given(
    jobs=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")), min_size=1, max_size=12),
    max_rows=st.integers(1, 16),
)
def test_a_batch_is_the_longest_run_of_like_jobs_that_fits(
    jobs: list[tuple[int, str]], max_rows: int
) -> None:
    waiting = deque(Asked({}, rows=rows, shapes=shapes) for rows, shapes in jobs)

    length = batch_length(waiting, max_rows=max_rows)

    taken = jobs[:length]
    assert 1 <= length <= len(jobs)
    assert len({shapes for _, shapes in taken}) == 1
    if length > 1:
        assert sum(rows for rows, _ in taken) <= max_rows
        assert all(rows for rows, _ in taken)
    if length < len(jobs) and all(rows for rows, _ in jobs[: length + 1]):
        rows, shapes = jobs[length]
        assert shapes != jobs[0][1] or sum(r for r, _ in taken) + rows > max_rows


@given(single=st.floats(1, 10_000), per_row=st.floats(0, 2))
def test_a_plan_keeps_the_loop_free_and_batches_only_what_pays(
    single: float, per_row: float
) -> None:
    def cost(size: int) -> float:
        return single * (1 + per_row * (size - 1))

    plan = decide(cost, batches=True)

    assert plan.inline == (single <= INLINE_LIMIT_US)
    assert not plan.inline or cost(plan.max_batch) <= INLINE_LIMIT_US
    assert cost(plan.max_batch) / plan.max_batch <= single
    assert decide(cost, batches=False).max_batch == 1


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


def test_one_bad_request_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    bundle = bundles.unpacked(tmp_path)
    gate = Gate(_open(bundle))
    gate.open.set()
    good = Asked({"x": SAMPLES[:1]})
    bad = Asked({"x": np.full_like(SAMPLES[:1], np.nan)})

    results = execute(gate, [good, bad], Stats()).results

    assert isinstance(results[1], EngineError)
    assert isinstance(results[0], dict)
    np.testing.assert_array_equal(results[0]["y"], bundles.directly(bundles.mlp(), SAMPLES[:1]))


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Models, list[Gate]]:
    """A table whose model waits at a gate once it was measured."""
    gates: list[Gate] = []

    def measure(session: Session, sample: Tensors, *, may_batch: bool) -> Plan:
        gate = Gate(session)
        gates.append(gate)
        # The measured session is the one that will serve: only its `run` is held up.
        monkeypatch.setattr(session, "run", _held(session.run, gate))
        return Plan(inline=False, max_batch=8, cost_us=1000)

    models = Models(queue_limit=2, measure=measure)
    load(models, tmp_path)
    return models, gates


def _held(run: Any, gate: Gate) -> Any:
    def held(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        gate.running.set()
        assert gate.open.wait(20)
        outputs: dict[str, NDArray[Any]] = run(inputs)
        return outputs

    return held


def test_a_full_queue_answers_at_once(gated: tuple[Models, list[Gate]]) -> None:
    models, (gate,) = gated
    with serving(models) as server:
        wires = [Wire(server) for _ in range(3)]
        wires[0].send(infer(SAMPLES[:1]))
        assert gate.running.wait(10)
        for wire in wires[1:]:
            wire.send(infer(SAMPLES[:1]))
        served = models.find("tiny")
        until(lambda: served.queue_depth >= 2)
        with Wire(server) as late:
            answer = late.ask(infer(SAMPLES[:1]))
        gate.open.set()

        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        for wire in wires:
            assert output(wire.answer()).shape == (1, bundles.CLASSES)
            wire.socket.close()
        (figure,) = models.figures()
        assert (figure.requests, figure.errors, figure.rejected) == (3, 0, 1)
        assert served.stats.snapshot().executions == 2, "the two that waited ran together"


def test_a_missed_deadline_is_told_while_the_engine_still_runs(
    gated: tuple[Models, list[Gate]],
) -> None:
    models, (gate,) = gated
    with serving(models) as server, Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], parameters={"timeout": 1000}))
        assert answer.status == 504
        gate.open.set()

        assert output(wire.ask(infer(SAMPLES[:1]))).shape == (1, bundles.CLASSES)
        assert models.find("tiny").stats.snapshot().errors == {"deadline": 1}


def test_a_request_whose_client_left_is_not_run(gated: tuple[Models, list[Gate]]) -> None:
    models, (gate,) = gated
    served = models.find("tiny")
    scheduler = served._scheduler
    assert isinstance(scheduler, Worker)
    with serving(models) as server, Wire(server) as first, Wire(server) as after:
        first.send(infer(SAMPLES[:1]))
        assert gate.running.wait(10)
        with Wire(server) as gone:
            gone.send(infer(SAMPLES[:2]))
            until(lambda: served.queue_depth >= 1)
            # A reset; a plain close only says that the client sends no more.
            gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        (job,) = scheduler._waiting
        until(lambda: job.settled)
        after.send(infer(SAMPLES[:1]))
        until(lambda: served.queue_depth >= 2)
        gate.open.set()
        assert output(after.answer()).shape == (1, bundles.CLASSES)
        assert output(first.answer()).shape == (1, bundles.CLASSES)
    assert served.stats.snapshot().inferences == 2


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


def _open(bundle: Any) -> Session:
    from edgekit_runtime.serving.models import open_variant

    return open_variant(bundle, bundle.manifest.variants[0])
