"""A new version is tried on live inputs beside the old one, and requests notice nothing of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.manifest import Pipeline
from edgekit.steps import Boxes, Softmax, TopK
from edgekit_runtime.canary.answers import Surface, compare, is_broken
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.canary.tap import Tap
from edgekit_runtime.canary.trial import RUN_LIMIT_S, Trial
from edgekit_runtime.canary.verdict import Verdict
from edgekit_runtime.client import Client
from edgekit_runtime.engines import Tensors
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.opener import Measure
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.server import Server
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.update.reasons import Reason
from tests import bundles
from tests.clock import ManualClock
from tests.runtime.bells import ringing
from tests.runtime.served import Wire, infer, inline, load, output, serving, until, worker

QUICK = CanarySection(min_s=0, spacing_s=0, cpu_share=1, latency_ratio_good=4, latency_ratio_bad=8)
"""Small models differ in time by what else the machine does; these tests are of the rest."""


PATIENCE_S = 120.0
"""For machines with much else to do; on others a verdict takes less than a second."""


def rows(seed: int) -> bytes:
    """Makes ten rows of six numbers, as a detector does, of a picture of 8 x 8."""
    weights = np.random.default_rng(seed).normal(0, 1, (192, 60)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["scores"]),
        helper.make_node("Reshape", ["scores", "shape"], ["y"]),
    ]
    held = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.array([-1, 10, 6], np.int64), "shape"),
    ]
    return bundles.onnx_model(nodes, held, (3, 8, 8), (10, 6), batchable=True)


def with_noise(seed: int, *, size: float) -> bytes:
    """The default model, its first weights a little different."""
    return changed(bundles.mlp(), seed=seed, size=size)


def changed(model: bytes, *, seed: int, size: float) -> bytes:
    found = onnx.load_from_string(model)
    weights = found.graph.initializer[0]
    before = onnx.numpy_helper.to_array(weights)
    noise = np.random.default_rng(seed).normal(0, size, before.shape).astype(np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(before + noise, weights.name))
    return bytes(found.SerializeToString())


def giving_nan(model: bytes) -> bytes:
    """The model, but for NaN where the first input is above .5; golden inputs may have it too."""
    found = onnx.load_from_string(model)
    graph = found.graph
    graph.node[-1].output[0] = "scores"
    half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
    nan = helper.make_tensor("nan", TensorProto.FLOAT, [1], [float("nan")])
    ends = [helper.make_tensor(f"at{i}", TensorProto.INT64, [1], [i]) for i in (0, 1)]
    graph.initializer.extend([half, nan, *ends])
    graph.node.extend(
        [
            helper.make_node("Slice", ["x", "at0", "at1", "at1"], ["first"]),
            helper.make_node("Greater", ["first", "half"], ["above"]),
            helper.make_node("Where", ["above", "nan", "scores"], ["y"]),
        ]
    )
    return bytes(found.SerializeToString())


class Beside:
    """A served version, and a loaded one that nobody sees."""

    def __init__(self, models: Models, server: Server, old: Served, new: Served) -> None:
        self.models = models
        self.server = server
        self.old = old
        self.new = new

    def tried(self, settings: CanarySection = QUICK, **options: Any) -> Trial:
        return Trial(self.old, self.new, settings=settings, rng=np.random.default_rng(0), **options)

    def wait_for_start(self) -> None:
        """Wait until inputs are taken: both sessions are open then."""
        end = time.monotonic() + PATIENCE_S
        while self.old.shadow is None:
            assert time.monotonic() < end, "the canary did not begin"
            time.sleep(0.005)

    def show(self, draw: Callable[[], Any], trial: Trial) -> Verdict:
        """Show the canary ever new inputs until there is a verdict, without the server."""
        end = time.monotonic() + PATIENCE_S
        while (verdict := trial.verdict()) is None:
            assert time.monotonic() < end, "the canary did not end"
            if self.old.shadow is not None:
                self.old.shadow.offer({"x": draw().astype(np.float32)}, 1)
            time.sleep(0.005)
        return verdict

    def ask_until_judged(self, trial: Trial) -> Verdict:
        """Ask with ever new inputs until there is a verdict; each answer is the old version's."""
        rng = np.random.default_rng(1)
        end = time.monotonic() + PATIENCE_S
        with Wire(self.server) as wire:
            while time.monotonic() < end:
                if (verdict := trial.verdict()) is not None:
                    return verdict
                if self.old.shadow is None:
                    time.sleep(0.01)
                    continue
                array = rng.normal(0, 1, (1, bundles.FEATURES)).astype(np.float32)
                answer = wire.ask(infer(array))
                assert answer.json["model_version"] == self.old.version
                assert output(answer).shape == (1, bundles.CLASSES)
        raise AssertionError(f"no verdict within {PATIENCE_S:g} s")


@contextmanager
def beside(
    folder: Path,
    new: bytes | None = None,
    *,
    settings: Settings | None = None,
    old_options: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[Beside]:
    models = Models(settings, measure=worker)
    old = models.load(bundles.unpacked(folder, **(old_options or {})), verified_by="a key")
    models.activate(old)
    with serving(models) as server:
        found = bundles.unpacked(folder, version="2.0.0", model=new, **options)
        loaded = models.load(found, verified_by="a key")
        try:
            yield Beside(models, server, old, loaded)
        finally:
            models.discard(loaded)
            assert loaded.wait_closed(10)


def test_the_same_model_is_promoted_with_its_figures(tmp_path: Path) -> None:
    with beside(tmp_path) as both:
        trial = both.tried()

        verdict = both.ask_until_judged(trial)
        trial.close()

    assert verdict.decision == "promote", verdict
    assert verdict.figures["agreement"] == 1.0
    assert verdict.figures["samples"] >= QUICK.min_samples
    assert verdict.figures["confidence_drop"] == 0.0
    assert trial.progress() == 1.0
    assert both.old.shadow is None
    assert not any(thread.name.startswith("canary") for thread in threading.enumerate())


def test_a_model_that_answers_otherwise_is_rolled_back(tmp_path: Path) -> None:
    as_sure = msgspec.structs.replace(QUICK, confidence_drop_good=0.9, confidence_drop_bad=0.95)
    with beside(tmp_path, bundles.mlp(seed=5)) as both:
        trial = both.tried(as_sure)

        verdict = both.ask_until_judged(trial)
        trial.close()

    assert verdict.decision == "roll_back"
    assert verdict.reason is Reason.CANARY_AGREEMENT
    assert verdict.figures["agreement_high"] < QUICK.agreement_good


def test_a_slightly_changed_model_is_promoted(tmp_path: Path) -> None:
    with beside(tmp_path, with_noise(1, size=0.01)) as both:
        trial = both.tried()

        verdict = both.ask_until_judged(trial)
        trial.close()

    assert verdict.decision == "promote", verdict
    assert verdict.figures["agreement"] > QUICK.agreement_good


def test_a_model_that_gives_nan_on_some_inputs_is_rolled_back_for_errors(tmp_path: Path) -> None:
    with beside(tmp_path, giving_nan(bundles.mlp())) as both:
        trial = both.tried()

        verdict = both.ask_until_judged(trial)
        trial.close()

    assert verdict.decision == "roll_back"
    assert verdict.reason is Reason.CANARY_ERRORS
    assert verdict.figures["errors"] > 0


def test_a_much_slower_model_is_rolled_back(tmp_path: Path) -> None:
    slow = bundles.mlp((bundles.FEATURES, 1024, 1024, bundles.CLASSES))
    lenient = msgspec.structs.replace(
        QUICK, agreement_good=0.02, agreement_bad=0.01, confidence_drop_good=0.9,
        confidence_drop_bad=0.95,
    )  # fmt: skip
    with beside(tmp_path, slow) as both:
        trial = both.tried(lenient)

        verdict = both.ask_until_judged(trial)
        trial.close()

    assert verdict.decision == "roll_back"
    assert verdict.reason is Reason.CANARY_LATENCY
    assert verdict.figures["latency_ratio"] > 4


@pytest.mark.parametrize("measure", [inline, worker])
def test_inputs_that_come_through_shared_memory_are_tried_too(
    tmp_path: Path, measure: Measure
) -> None:
    models = Models(measure=measure)
    old = load(models, tmp_path)
    new = models.load(bundles.unpacked(tmp_path, version="2.0.0"), verified_by="a key")
    with ringing(models, tmp_path / "bell") as hung, Client(hung.path) as client:
        trial = Trial(old, new, settings=QUICK)
        until(lambda: old.shadow is not None)
        program = client.open("tiny")
        rng = np.random.default_rng(3)
        while (verdict := trial.verdict()) is None:
            program.inputs["x"][:] = rng.normal(0, 1, (1, bundles.FEATURES))
            program.run()
        trial.close()
        models.discard(new)
        assert new.wait_closed(10)

    assert verdict.decision == "promote", verdict


def test_a_version_in_a_process_of_its_own_is_tried_in_one(tmp_path: Path) -> None:
    with beside(tmp_path, settings=Settings(workers="process")) as both:
        trial = both.tried()

        verdict = both.ask_until_judged(trial)
        trial.close()

    assert verdict.decision == "promote", verdict


def test_no_room_for_a_second_session_is_no_fault_of_the_version(tmp_path: Path) -> None:
    # Each variant needs 16 MB: both versions fit, but nothing beside them.
    with beside(tmp_path, settings=Settings(memory_bytes=40 << 20)) as both:
        trial = both.tried()
        until(lambda: trial.verdict() is not None)
        trial.close()
        verdict = trial.verdict()
        assert both.models.find("tiny") is both.old

    assert verdict is not None
    assert verdict.decision == "undecided"
    assert "no room for a canary" in verdict.detail


def test_memory_of_a_canary_is_given_back(tmp_path: Path) -> None:
    with beside(tmp_path, settings=Settings(memory_bytes=70 << 20)) as both:
        for _ in range(3):
            trial = both.tried()
            assert both.ask_until_judged(trial).decision == "promote"
            trial.close()


def test_a_version_that_takes_other_inputs_cannot_be_compared(tmp_path: Path) -> None:
    other = bundles.mlp((bundles.FEATURES + 1, bundles.CLASSES))
    with beside(tmp_path, other) as both:
        trial = both.tried()
        verdict = trial.verdict()
        trial.close()

    assert verdict is not None
    assert verdict.decision == "undecided"
    assert "other inputs" in verdict.detail


def test_answers_of_another_kind_agree_in_nothing(tmp_path: Path) -> None:
    boxes = Pipeline(post=(Boxes(family="rows"),))
    with beside(tmp_path, rows(2), old_options={"model": rows(1), "pipeline": boxes}) as both:
        trial = both.tried()
        verdict = both.show(lambda: np.random.default_rng(3).random((1, 3, 8, 8)), trial)
        trial.close()

    assert (verdict.decision, verdict.reason) == ("roll_back", Reason.CANARY_AGREEMENT)
    assert verdict.figures["agreement"] == 0


def test_a_comparison_that_fails_speaks_against_the_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr("edgekit_runtime.canary.bench.compare", fail)
    with beside(tmp_path) as both:
        trial = both.tried()
        verdict = both.ask_until_judged(trial)
        trial.close()

    assert (verdict.decision, verdict.reason) == ("roll_back", Reason.INTERNAL)


def test_without_live_inputs_a_canary_does_not_wait_for_ever(tmp_path: Path) -> None:
    clock = ManualClock()
    with beside(tmp_path) as both:
        trial = both.tried(clock=clock)
        both.wait_for_start()
        assert trial.verdict() is None
        clock.advance(QUICK.idle_s + 1)
        verdict = trial.verdict()
        trial.close()

    assert verdict is not None
    assert verdict.decision == "undecided"
    assert "no live inputs" in verdict.detail


@pytest.mark.parametrize(
    ("on_timeout", "decision", "reason"),
    [("roll_back", "roll_back", Reason.CANARY_TIMEOUT), ("supervise", "undecided", None)],
)
def test_what_follows_from_the_time_limit_is_told(
    tmp_path: Path, on_timeout: Any, decision: str, reason: Reason | None
) -> None:
    clock = ManualClock()
    patient = msgspec.structs.replace(
        QUICK, min_samples=10_000, on_timeout=on_timeout, limit_s=RUN_LIMIT_S / 2
    )
    with beside(tmp_path) as both:
        trial = both.tried(patient, clock=clock)
        with Wire(both.server) as wire:
            both.wait_for_start()
            for _ in range(5):
                wire.ask(infer(bundles.samples(1)))
        assert trial.verdict() is None
        clock.advance(patient.limit_s + 1)
        verdict = trial.verdict()
        trial.close()

    assert verdict is not None
    assert (verdict.decision, verdict.reason) == (decision, reason)


def test_a_canary_that_is_closed_takes_no_more_inputs(tmp_path: Path) -> None:
    with beside(tmp_path) as both:
        trial = both.tried()
        both.wait_for_start()
        trial.close()

        assert both.old.shadow is None
        assert trial.verdict() is None
        with Wire(both.server) as wire:
            assert wire.ask(infer(bundles.samples(1))).status == 200


@pytest.mark.parametrize("is_same", [True, False])
def test_what_was_seen_stays_where_the_same_bundle_was_opened_anew(
    tmp_path: Path, is_same: bool
) -> None:
    clock = ManualClock()
    patient = msgspec.structs.replace(QUICK, min_samples=10_000, limit_s=RUN_LIMIT_S / 2)
    with beside(tmp_path) as both:
        trial = both.tried(patient, clock=clock)
        ask_until(lambda: len(trial._samples) >= 4, both)
        clock.advance(20)
        # The next sessions are their own, as after a reload; what serves has another digest or not.
        seed = 0 if is_same else 7
        folder = tmp_path / "again"
        folder.mkdir()
        again = both.models.load(bundles.unpacked(folder, seed=seed), verified_by="a key")
        both.models.activate(again, replace=True)
        before, seen, both.old = both.old, len(trial._samples), again
        assert (again.digest == before.digest) is is_same
        second = trial.again(again)
        assert before.shadow is None
        assert second.spent_s == 20
        assert second.progress() >= 20 / patient.limit_s
        ask_until(lambda: len(second._samples) > (seen if is_same else 0), both)
        clock.advance(patient.limit_s - 20 + 1)
        verdict = second.verdict()
        second.close()

    assert verdict is not None
    assert verdict.reason is Reason.CANARY_TIMEOUT
    assert (verdict.figures["samples"] > seen) or not is_same
    assert verdict.figures["seconds"] == patient.limit_s + 1 - (0 if is_same else 20)


def ask_until(condition: Callable[[], bool], both: Beside) -> None:
    """Ask with ever new inputs, until a canary has seen enough of them."""
    both.wait_for_start()
    rng = np.random.default_rng(2)
    end = time.monotonic() + PATIENCE_S
    with Wire(both.server) as wire:
        while not condition():
            assert time.monotonic() < end
            wire.ask(infer(rng.normal(0, 1, (1, bundles.FEATURES)).astype(np.float32)))


def test_a_new_worker_that_dies_is_why_the_version_is_rolled_back(tmp_path: Path) -> None:
    endless = msgspec.structs.replace(QUICK, min_samples=10_000, limit_s=1000)
    with beside(tmp_path, settings=Settings(workers="process")) as both:
        trial = both.tried(endless)
        both.wait_for_start()
        os.kill(second_worker(both), signal.SIGKILL)

        verdict = both.ask_until_judged(trial)
        trial.close()

    assert verdict.decision == "roll_back"
    assert verdict.reason is Reason.CANARY_CRASHED


def test_a_new_worker_that_hangs_is_why_the_version_is_rolled_back(tmp_path: Path) -> None:
    clock = ManualClock()
    with beside(tmp_path, settings=Settings(workers="process")) as both:
        trial = both.tried(clock=clock)
        both.wait_for_start()
        hung = second_worker(both)
        os.kill(hung, signal.SIGSTOP)
        with Wire(both.server) as wire:
            wire.ask(infer(bundles.samples(1)))
        until(lambda: trial.runs_new)
        clock.advance(RUN_LIMIT_S + 1)
        verdict = trial.verdict()
        os.kill(hung, signal.SIGCONT)
        trial.close()

    assert verdict is not None
    assert (verdict.decision, verdict.reason) == ("roll_back", Reason.CANARY_CRASHED)


def second_worker(both: Beside) -> int:
    """The process that the canary runs the new version in: the child that was started last."""
    known = {served.default.opened.runner.pid for served in (both.old, both.new)}
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    mine = {int(pid) for path in children for pid in path.read_text().split()}
    return max(mine - known)


# The tap.


def tap(clock: ManualClock, **options: Any) -> Tap:
    given = {"spacing_s": 1.0, "queue_bytes": 1 << 20, **options}
    return Tap(clock=clock.monotonic, rng=np.random.default_rng(0), **given)


def test_inputs_that_come_close_together_are_taken_once() -> None:
    clock = ManualClock()
    found = tap(clock)

    for _ in range(1000):
        found.offer({"x": np.zeros((1, 4), np.float32)}, 1)
        clock.advance(0.01)

    assert 5 <= found.taken <= 20


def test_a_full_queue_takes_no_more_and_says_how_many() -> None:
    found = tap(ManualClock(), spacing_s=0.0, queue_bytes=100)

    for _ in range(10):
        found.offer({"x": np.zeros((1, 10), np.float32)}, 1)

    assert (found.taken, found.dropped) == (2, 8)
    assert found.take(0.0) is not None
    found.offer({"x": np.zeros((1, 10), np.float32)}, 1)
    assert found.taken == 3


def test_an_input_larger_than_the_queue_still_has_its_turn() -> None:
    found = tap(ManualClock(), spacing_s=0.0, queue_bytes=1)

    found.offer({"x": np.zeros((1, 10), np.float32)}, 1)

    assert found.taken == 1


def test_nothing_is_judged_before_scenes_had_time_to_change(tmp_path: Path) -> None:
    clock = ManualClock()
    patient = msgspec.structs.replace(QUICK, min_s=100)
    with beside(tmp_path) as both, Wire(both.server) as wire:
        trial = both.tried(patient, clock=clock)
        both.wait_for_start()
        for _ in range(2 * patient.min_samples):
            wire.ask(infer(bundles.samples(1)))
        assert trial.verdict() is None
        clock.advance(patient.min_s)
        both.ask_until_judged(trial)
        trial.close()


def test_what_was_taken_stays_as_it_was() -> None:
    found = tap(ManualClock(), spacing_s=0.0)
    array = np.arange(8, dtype=np.float32).reshape(4, 2)

    found.offer({"x": array}, 4)
    array[:] = -1
    taken = found.take(0.0)

    assert taken is not None
    assert taken["x"].shape == (1, 2)
    assert taken["x"].min() >= 0


# Answers.

SCORES = Surface((), ())


def agreement(before: Tensors, after: Tensors, *, post: Any = ((), ())) -> tuple[float, float]:
    old, new = (Surface(steps, ()) for steps in post)
    found = compare(old, new, before, after, {"x": np.zeros((1, 3, 8, 8))}, tolerance=0.1)
    return found.agreement, found.drop


def scores(*values: float) -> Tensors:
    return {"y": np.array([values], np.float32)}


def test_the_same_first_class_is_agreement_and_its_probability_is_compared() -> None:
    assert agreement(scores(0.1, 0.7, 0.2), scores(0.3, 0.5, 0.2)) == pytest.approx((1.0, 0.2))
    assert agreement(scores(0.1, 0.7, 0.2), scores(0.7, 0.1, 0.2))[0] == 0.0


def test_probabilities_beside_their_label_are_an_answer_in_classes() -> None:
    """As a scikit-learn classifier gives them: another certainty is no other answer."""

    def told(*values: float) -> Tensors:
        found = np.array([values], np.float32)
        return {"probabilities": found, "label": found.argmax(1)}

    assert agreement(told(0.1, 0.7, 0.2), told(0.01, 0.98, 0.01)) == pytest.approx((1.0, -0.28))
    assert agreement(told(0.1, 0.7, 0.2), told(0.7, 0.1, 0.2))[0] == 0.0


def test_numbers_beside_another_output_are_no_classes() -> None:
    def told(value: float) -> Tensors:
        return {"level": np.array([[value, 3.0]], np.float32), "count": np.array([2])}

    assert agreement(told(1.0), told(2.0))[0] == 0.0


def test_scores_and_probabilities_are_told_apart_on_either_side() -> None:
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    sure = np.exp(logits) / np.exp(logits).sum()

    assert agreement({"y": logits}, {"y": sure}) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_classes_are_compared_by_name_where_both_have_names() -> None:
    old = (Softmax(), TopK(labels=("cat", "dog")))
    new = (Softmax(), TopK(labels=("dog", "cat")))

    assert agreement(scores(0, 5), scores(5, 0), post=(old, new))[0] == 1.0
    assert agreement(scores(0, 5), scores(0, 5), post=(old, new))[0] == 0.0


def test_boxes_agree_by_the_share_that_has_a_counterpart() -> None:
    step = (Boxes(family="rows", iou_threshold=None),)
    one, two = [1, 1, 4, 4, 0.9, 0], [5, 5, 8, 8, 0.8, 1]

    def rows(*boxes: list[float]) -> Tensors:
        return {"y": np.array([boxes], np.float32)}

    assert agreement(rows(one, two), rows(one, two), post=(step, step))[0] == 1.0
    both = agreement(rows(one, two), rows(one, [*two[:4], 0.1, 1]), post=(step, step))
    assert both[0] == pytest.approx(2 / 3)
    assert agreement(rows(one), rows(two), post=(step, step)) == pytest.approx((0.0, 0.1))


def test_outputs_that_are_no_classes_agree_within_the_tolerance() -> None:
    before = {"y": np.ones((1, 2, 3), np.float32)}

    near, _ = agreement(before, {"y": before["y"] * np.float32(1.05)})
    far, drop = agreement(before, {"y": before["y"] * np.float32(1.2)})

    assert (near, far) == (1.0, 0.0)
    assert np.isnan(drop)


def test_whole_numbers_agree_where_they_are_equal() -> None:
    before = {"y": np.array([[3, 4]], np.int64)}

    assert agreement(before, {"y": before["y"].copy()})[0] == 1.0
    assert agreement(before, {"y": before["y"] + 1})[0] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_broken_only_where_the_old_one_was_one(bad: float) -> None:
    good, broken = scores(0.5, 0.5), scores(0.5, bad)

    assert is_broken(good, broken)
    assert not is_broken(broken, broken)
    assert not is_broken(good, good)
