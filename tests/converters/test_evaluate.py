"""Figures of accuracy are what they say they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit_converters.data import Samples
from edgekit_converters.evaluate import MetricName, bootstrap, evaluate
from edgekit_converters.golden import round_up, rounding_of, tolerances


def samples(count: int, labels: list[int] | None = None) -> Samples:
    known = None if labels is None else np.array(labels, np.int64)
    return Samples({"x": np.zeros((count, 1), np.float32)}, known, np.arange(count))


def scores(answers: list[int], classes: int = 4) -> dict[str, NDArray[np.float32]]:
    return {"scores": np.eye(classes, dtype=np.float32)[answers]}


def test_agreement_counts_the_same_top_answers() -> None:
    found = evaluate(scores([0, 1, 2, 3]), scores([0, 1, 2, 0]), samples(4), metric=None)

    assert found.agreement == 0.75
    assert found.metric.name == "agreement"
    assert found.worst[0].position == 3


def test_top1_compares_both_models_with_the_labels() -> None:
    found = evaluate(
        scores([0, 1, 2, 3]), scores([0, 1, 0, 0]), samples(4, [0, 1, 2, 0]), metric=None
    )

    assert (found.metric.name, found.metric.float_value, found.metric.value) == ("top1", 0.75, 0.75)
    assert found.metric.drop == 0


def test_each_class_says_what_it_gained_or_lost() -> None:
    found = evaluate(scores([0, 0, 1]), scores([0, 1, 1]), samples(3, [0, 0, 1]), metric=None)

    assert [(c.label, c.samples, c.float_right, c.right) for c in found.classes] == [
        (0, 2, 1.0, 0.5),
        (1, 1, 1.0, 1.0),
    ]


def test_outputs_that_are_no_scores_are_judged_by_their_direction() -> None:
    reference = {"y": np.array([[[1.0, 0.0]], [[0.0, 2.0]]])}

    found = evaluate(reference, {"y": reference["y"] * 3}, samples(2), metric=None)

    assert found.agreement is None
    assert found.metric.name == "cosine"
    assert found.metric.value == pytest.approx(1.0)


def test_mse_is_relative_to_the_variance_of_the_source() -> None:
    reference = {"y": np.array([[0.0, 2.0], [0.0, 2.0]])}

    found = evaluate(reference, {"y": reference["y"] + 0.5}, samples(2), metric="mse")

    assert found.metric.value == pytest.approx(0.25)
    assert found.metric.drop == pytest.approx(0.25)


@pytest.mark.parametrize(("metric", "message"), [("top1", "labels"), ("agreement", "scores")])
def test_a_metric_without_what_it_needs_is_refused(metric: MetricName, message: str) -> None:
    reference = {"y": np.zeros((2, 3, 3), np.float32)}
    given_ = scores([0, 1]) if metric == "top1" else reference

    with pytest.raises(RecipeError, match=message):
        evaluate(given_, given_, samples(2), metric=metric)


def test_an_answer_that_is_not_a_number_is_an_infinite_error() -> None:
    broken = scores([0, 1])
    broken["scores"][0, 0] = np.nan

    found = evaluate(scores([0, 1]), broken, samples(2), metric=None)

    assert not found.finite
    assert found.max_abs_error == float("inf")


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60))
def test_an_interval_holds_the_mean_of_what_it_is_about(drawn: list[tuple[int, bool]]) -> None:
    groups = np.array([group for group, _ in drawn], np.int64)
    values = np.array([float(value) for _, value in drawn])

    low, high = bootstrap(values, groups)

    assert 0 <= low <= high <= 1
    assert low - 1e-9 <= values.mean() <= high + 1e-9 or len(set(groups.tolist())) > 1


def test_samples_of_one_group_widen_the_interval() -> None:
    values = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0], 20)
    alone = bootstrap(values, np.arange(100))
    grouped = bootstrap(values, np.repeat(np.arange(5), 20))

    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


# Golden tolerances.


@given(st.floats(1e-9, 1e9))
def test_rounding_up_never_falls_below_and_stays_close(value: float) -> None:
    rounded = round_up(value)

    assert value <= rounded * (1 + 1e-8)
    assert rounded <= value * 1.11
    assert float(f"{rounded:.1e}") == pytest.approx(rounded, rel=1e-12)


def test_a_variant_that_was_not_executed_has_no_tolerance_of_its_own() -> None:
    golden = tolerances(outputs=None, scale=1.0, largest_error=0.2)

    assert (golden.outputs, golden.atol, golden.rtol) == (None, None, None)
    assert golden.reference_atol == pytest.approx(0.3)


@given(scale=st.floats(1e-3, 1e3), error=st.floats(0, 10), rounding=st.floats(0, 10))
def test_tolerances_let_what_was_measured_pass(scale: float, error: float, rounding: float) -> None:
    golden = tolerances(outputs="golden/v", scale=scale, largest_error=error, rounding=rounding)

    assert golden.reference_atol * (1 + 1e-8) >= 1.5 * error
    assert golden.atol is not None
    assert golden.atol * (1 + 1e-8) >= 2 * rounding
    assert golden.reference_atol * (1 + 1e-8) >= scale * 1e-3


def test_an_error_against_the_source_does_not_widen_what_a_device_must_reproduce() -> None:
    golden = tolerances(outputs="golden/v", scale=1.0, largest_error=9.0, rounding=0.1)

    assert golden.atol == pytest.approx(0.2)


def test_rounding_is_never_below_two_steps_of_an_output_in_eight_bits() -> None:
    answers = {"scores": np.linspace(-2, 3, 100, dtype=np.float32)}

    assert rounding_of(answers, answers) == pytest.approx(2 * 5 / 255)
    assert rounding_of(answers, {"scores": answers["scores"] + 1}) == pytest.approx(1)
