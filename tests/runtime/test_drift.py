"""Drift of a served model: what is looked at, what that costs, and what is told of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.drift import reference as references
from edgekit.drift.reference import MAX_FEATURES, Reference, part_of
from edgekit.drift.sketch import unpack
from edgekit.drift.views import View
from edgekit.errors import ManifestError
from edgekit_runtime.drift import BLOCKS, Drift, Pace
from edgekit_runtime.drift_watch import Watch
from edgekit_runtime.serving.models import Models
from edgekit_runtime.telemetry import Level
from tests import bundles
from tests.clock import ManualClock
from tests.runtime import drifting
from tests.runtime.served import Wire, get, infer, inline, load, serving, until

DIGEST = "0" * 64


class Ticking:
    """A clock in nanoseconds that moves on with each look at it."""

    def __init__(self, step_ns: int) -> None:
        self.now_ns = 0
        self.step_ns = step_ns

    def __call__(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns


def watched(
    clock: ManualClock,
    *,
    reference: Reference | None = None,
    pace: Pace | None = None,
    clock_ns: Callable[[], int] | None = None,
) -> Drift:
    return Drift(
        reference or drifting.reference(),
        digest=DIGEST,
        model=("tiny", "1.0.0"),
        pace=pace or Pace(window_s=1600),
        clock=clock.monotonic,
        clock_ns=clock_ns or Ticking(1000),
        rng=np.random.default_rng(1),
    )


def stream(drift: Drift, clock: ManualClock, *, seed: int, shift: float = 0.0) -> None:
    """Show a whole window: each block 32 samples over 100 s."""
    samples = drifting.inputs(BLOCKS * 32 + 1, seed=seed, shift=shift)
    for at in range(len(samples)):
        row = samples[at : at + 1]
        drift.observe("float", {"x": row}, {"y": drifting.answers(row)}, 1)
        clock.advance(100 / 32)


def test_a_window_like_the_reference_is_no_alarm() -> None:
    clock = ManualClock()
    drift = watched(clock)
    stream(drift, clock, seed=7)
    verdict = drift.judge()

    assert verdict is not None
    assert not verdict.drifts
    assert (drift.state.windows, drift.state.alarms) == (1, 0)


def test_a_window_of_shifted_inputs_is_an_alarm_that_names_what_shifted() -> None:
    clock = ManualClock()
    drift = watched(clock)
    stream(drift, clock, seed=7, shift=1.5)
    verdict = drift.judge()

    assert verdict is not None
    assert verdict.drifts
    assert verdict.feature == "x[0]"
    assert drift.state.alarms == 1


def test_a_window_is_judged_once() -> None:
    clock = ManualClock()
    drift = watched(clock)
    assert drift.judge() is None
    stream(drift, clock, seed=7)

    assert drift.judge() is not None
    assert drift.judge() is None


def test_a_window_lasts_until_it_has_its_samples() -> None:
    clock = ManualClock()
    drift = watched(clock)
    row = drifting.inputs(1, seed=1)
    for _ in range(BLOCKS * 31):
        drift.observe("float", {"x": row}, {"y": drifting.answers(row)}, 1)
        clock.advance(10_000)

    assert drift.judge() is None


def test_a_window_lasts_its_time_and_holds_a_bounded_number_of_samples() -> None:
    clock = ManualClock()
    drift = watched(clock)
    row = drifting.inputs(1, seed=1)
    for _ in range(2000):
        drift.observe("float", {"x": row}, {"y": drifting.answers(row)}, 1)

    assert drift.judge() is None
    assert drift.state.rows == 255


@given(st.lists(st.tuples(st.integers(1, 10**8), st.integers(0, 10**6)), max_size=300))
def test_looking_never_costs_more_than_its_share(runs: list[tuple[int, int]]) -> None:
    clock_ns = Ticking(0)
    drift = watched(ManualClock(), clock_ns=clock_ns)
    row = drifting.inputs(1, seed=1)
    engine_ns = spent_ns = dearest_ns = 0
    for run_ns, cost_ns in runs:
        engine_ns += run_ns
        if drift.due(run_ns):
            clock_ns.step_ns = cost_ns
            drift.observe("float", {"x": row}, {"y": drifting.answers(row)}, 1)
            spent_ns += cost_ns
            dearest_ns = max(dearest_ns, cost_ns)

    # Who has spent too much waits until it is paid for.
    assert spent_ns <= engine_ns * 0.01 + dearest_ns


def test_what_one_model_holds_is_bounded() -> None:
    view = View(tensor="x", kind="values", rank=1, size=MAX_FEATURES)
    numbers = np.random.default_rng(1).random((500, MAX_FEATURES))
    whole = Reference(inputs=part_of([view], numbers, np.arange(500)))
    raw = references.encode(whole)
    watched(ManualClock(), reference=references.decode(raw))

    tracemalloc.start()
    drift = watched(ManualClock(), reference=references.decode(raw))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert drift.size_bytes <= 64 << 10
    assert held <= 64 << 10


def test_rows_of_a_batch_all_have_their_turn() -> None:
    drift = watched(ManualClock())
    rows = np.tile(np.arange(8, dtype=np.float32)[:, np.newaxis], (1, 16)) * 100
    for _ in range(64):
        drift.observe("float", {"x": rows}, {"y": drifting.answers(rows)}, 8)
    counted = drift._counts[0, 0]

    # Only the first of the eight lies below what the reference has seen last.
    assert drift.state.rows == 64
    assert counted.sum() == 64
    assert counted[7] == 56


def test_a_sample_of_another_shape_is_counted_as_that() -> None:
    drift = watched(ManualClock())
    drift.observe("float", {"x": np.zeros((1, 5), np.float32)}, {}, 1)
    drift.observe("float", {}, {}, 1)

    assert (drift.state.rows, drift.state.unlike) == (0, 2)


def test_answers_of_a_variant_without_a_reference_do_not_count_and_its_inputs_do() -> None:
    drift = watched(ManualClock())
    row = drifting.inputs(1, seed=1)
    drift.observe("other", {"x": row}, {"y": drifting.answers(row)}, 1)

    assert drift.state.rows == 1
    assert drift._counts[0, 16:].sum() == 0


def test_changed_answers_to_the_same_inputs_are_an_alarm() -> None:
    clock = ManualClock()
    drift = watched(clock)
    samples = drifting.inputs(BLOCKS * 32 + 1, seed=7)
    for at in range(len(samples)):
        row = samples[at : at + 1]
        drift.observe("float", {"x": row}, {"y": drifting.answers(row) * np.float32(0.3)}, 1)
        clock.advance(100 / 32)
    verdict = drift.judge()

    assert verdict is not None
    assert verdict.drifts
    assert verdict.feature in ("y confidence", "y entropy")


def test_a_reference_with_few_sources_gives_no_alarm() -> None:
    samples = drifting.inputs(100, seed=0)
    view = View(tensor="x", kind="values", rank=1, size=16)
    few = Reference(inputs=part_of([view], samples.astype(np.float64), np.arange(100) % 7))
    clock = ManualClock()
    drift = watched(clock, reference=few)
    stream(drift, clock, seed=7, shift=9)

    assert drift.judge() is None
    assert (drift.state.windows, drift.state.alarms) == (1, 0)


def test_telemetry_gets_each_windows_sketch_once() -> None:
    clock = ManualClock()
    drift = watched(clock)
    assert drift.figures().p is None
    stream(drift, clock, seed=7)
    drift.judge()
    first, second = drift.figures(), drift.figures()

    assert first.sketch is not None
    assert second.sketch is None
    assert (first.p, second.windows) == (second.p, 1)
    assert first.sketch.reference == DIGEST
    assert first.sketch.rows == BLOCKS * 32
    assert unpack(first.sketch).sum(axis=1).tolist() == [BLOCKS * 32] * 19


def test_an_alarm_is_told_once_with_its_facts() -> None:
    clock = ManualClock()
    drift = watched(clock)
    told: list[tuple[str, str, dict[str, object]]] = []

    def events(kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        told.append((kind, level, facts))

    watch = Watch(lambda: [drift], events=events)
    stream(drift, clock, seed=7, shift=1.5)
    watch.turn()
    stream(drift, clock, seed=8)
    watch.turn()

    ((kind, level, facts),) = told
    assert (kind, level) == ("drift", "warning")
    assert facts["model"] == "tiny"
    assert facts["feature"] == "x[0]"


def test_the_watch_judges_on_a_thread_of_its_own_and_ends() -> None:
    clock = ManualClock()
    drift = watched(clock)
    stream(drift, clock, seed=7)
    watch = Watch(lambda: [drift], events=lambda *_, **__: None, interval_s=0.001)
    watch.start()

    until(lambda: drift.state.windows == 1)
    watch.close()


def test_a_served_model_is_looked_at_and_told_of_in_metrics(tmp_path: Path) -> None:
    raw = references.encode(drifting.reference())
    models = Models(measure=inline)
    served = load(models, tmp_path, extra={references.ENTRY: raw})
    assert served.drift is not None

    with serving(models) as server, Wire(server) as wire:
        for _ in range(3):
            assert wire.ask(infer(drifting.inputs(4, seed=1))).status == 200
        metrics = wire.ask(get("/metrics")).body.decode()

    assert served.drift.state.rows >= 1
    labels = '{model="tiny",version="1.0.0"}'
    assert f"edgekit_drift_samples_total{labels} {served.drift.state.rows}" in metrics


def test_a_bundle_without_a_reference_is_served_without_drift(tmp_path: Path) -> None:
    assert Drift.of(bundles.unpacked(tmp_path)) is None


@pytest.mark.parametrize("raw", [b"{}", b"[", b'{"format":2}'])
def test_a_bundle_with_a_wrong_reference_is_refused(raw: bytes, tmp_path: Path) -> None:
    options: dict[str, Any] = {"extra": {references.ENTRY: raw}}

    with pytest.raises(ManifestError, match=r"drift\.json"):
        Drift.of(bundles.unpacked(tmp_path, **options))
