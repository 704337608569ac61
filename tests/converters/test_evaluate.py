"""Figures of accuracy are what they say they are."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import RecipeError
from edgekit.recipe import Budget
from edgekit_converters import gate
from edgekit_converters.data import Samples
from edgekit_converters.evaluate import Evaluation, evaluate, max_abs_error, scale_of
from edgekit_converters.gate import Figures
from edgekit_converters.golden import round_up, rounding_of, tolerances
from edgekit_converters.metrics.views import Outputs
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import run_all

ANSWERS = st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=2, max_size=40)


def samples(
    count: int, labels: list[int] | None = None, groups: list[int] | None = None
) -> Samples:
    known = None if labels is None else np.array(labels, np.int64)
    together = np.arange(count) if groups is None else np.array(groups, np.int64)
    return Samples({"x": np.zeros((count, 1), np.float32)}, known, together)


def scores(answers: list[int], classes: int = 4) -> dict[str, NDArray[np.float32]]:
    return {"scores": np.eye(classes, dtype=np.float32)[answers]}


def test_agreement_counts_the_same_top_answers() -> None:
    found = evaluate(scores([0, 1, 2, 3]), scores([0, 1, 2, 0]), samples(4), metric=None)

    assert found.agreement == 0.75
    assert (found.metric.name, found.metric.reference) == ("agreement", "float")
    assert found.worst[0].position == 3


def test_top1_compares_both_models_with_the_labels() -> None:
    found = evaluate(
        scores([0, 1, 2, 3]), scores([0, 1, 0, 0]), samples(4, [0, 1, 2, 0]), metric=None
    )

    assert (found.metric.name, found.metric.float_value, found.metric.value) == ("top1", 0.75, 0.75)
    assert (found.metric.drop, found.metric.reference) == (0, "labels")


def test_flips_say_what_was_lost_and_won() -> None:
    found = evaluate(
        scores([0, 1, 2, 3, 0]), scores([0, 1, 0, 0, 1]), samples(5, [0, 1, 2, 0, 3]), metric=None
    )

    flips = found.flips
    assert flips is not None
    assert (flips.changed, flips.rate, flips.lost, flips.won) == (3, 0.6, 1, 1)
    assert flips.mcnemar_p == 1


def test_without_labels_flips_are_neither_lost_nor_won() -> None:
    flips = evaluate(scores([0, 1]), scores([0, 0]), samples(2), metric=None).flips

    assert flips is not None
    assert (flips.changed, flips.lost, flips.won, flips.mcnemar_p) == (1, None, None, None)


def test_each_class_says_what_it_gained_or_lost() -> None:
    found = evaluate(scores([0, 0, 1]), scores([0, 1, 1]), samples(3, [0, 0, 1]), metric=None)

    assert [(c.label, c.samples, c.float_right, c.right) for c in found.classes] == [
        (0, 2, 1.0, 0.5),
        (1, 1, 1.0, 1.0),
    ]


def test_a_class_that_few_groups_show_has_no_interval() -> None:
    labels = [0] * 30 + [1] * 30
    groups = [*range(30), *[99] * 30]

    many, few = evaluate(
        scores(labels),
        scores([1] * 15 + [0] * 15 + [1] * 30),
        samples(60, labels, groups),
        metric=None,
    ).classes

    assert (many.groups, many.drop) == (30, 0.5)
    assert many.drop_ci95 is not None
    assert 0.2 < many.drop_ci95[0] < 0.5 < many.drop_ci95[1] < 0.8
    assert (few.groups, few.samples, few.drop_ci95) == (1, 30, None)


def test_a_class_that_collapses_reaches_the_gate_as_a_warning() -> None:
    labels = [0] * 30 + [1] * 570
    found = evaluate(
        scores(labels), scores([1] * 20 + [0] * 10 + [1] * 570), samples(600, labels), metric=None
    )

    figures = Figures(size_bytes=1, classes=found.classes)

    (said,) = gate.judge(figures, Budget()).warnings
    assert said.startswith("class 0 drops by 0.667 on 30 samples")


def test_outputs_that_are_no_scores_are_judged_by_their_direction() -> None:
    reference = {"y": np.array([[[1.0, 0.0]], [[0.0, 2.0]]])}

    found = evaluate(reference, {"y": reference["y"] * 3}, samples(2), metric=None)

    assert (found.agreement, found.flips, found.kind) == (None, None, "values")
    assert found.metric.name == "cosine"
    assert found.metric.value == pytest.approx(1.0)


def test_errors_are_shown_as_errors_and_dropped_as_such() -> None:
    reference = {"y": np.array([[0.0, 2.0], [0.0, 2.0]])}

    found = evaluate(reference, {"y": reference["y"] + 0.5}, samples(2), metric="mse").metric

    assert (found.value, found.float_value, found.drop) == pytest.approx((0.25, 0, 0.25))
    assert found.ci95 is not None
    assert found.ci95[0] <= 0.25 <= found.ci95[1]


def test_an_error_beyond_that_of_a_constant_keeps_its_bounds() -> None:
    truth = np.random.default_rng(0).standard_normal((40, 3))

    found = evaluate({"y": truth}, {"y": truth * -2}, samples(40), metric="mse")

    metric = found.metric
    assert metric.drop == pytest.approx(9, rel=0.1)
    assert metric.ci95 is not None
    assert metric.drop_ci95 is not None
    assert found.drop_high is not None
    assert metric.ci95 == pytest.approx(metric.drop_ci95, rel=0.1)
    assert metric.drop_ci95[0] < metric.drop < found.drop_high <= metric.drop_ci95[1]


def test_an_embedding_has_no_answer_that_could_agree() -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)

    found = evaluate({"y": vectors}, {"y": -vectors}, samples(30), metric="retrieval")

    assert (found.agreement, found.metric.value) == (None, 1)


@pytest.mark.parametrize(("metric", "message"), [("top1", "labels"), ("agreement", "scores")])
def test_a_metric_without_what_it_needs_is_refused(metric: str, message: str) -> None:
    reference = {"y": np.zeros((2, 3, 3), np.float32)}
    given_ = scores([0, 1]) if metric == "top1" else reference

    with pytest.raises(RecipeError, match=message):
        evaluate(given_, given_, samples(2), metric=metric)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_answer_that_is_not_a_number_is_the_largest_error(broken: float) -> None:
    outputs = scores([0, 1])
    outputs["scores"][0, 0] = broken

    found = evaluate(scores([0, 1]), outputs, samples(2), metric=None)

    assert (found.finite, found.errors) == (False, ())
    assert found.max_abs_error == max_abs_error(scores([0, 1]), outputs) > 1e300
    assert found.outputs[0].artefact is not None
    assert found.outputs[0].artefact.finite == pytest.approx(7 / 8)


def test_texts_differ_or_not_and_have_no_size() -> None:
    before, after = ({"t": np.array(words)} for words in (["a", "b"], ["a", "c"]))

    assert max_abs_error(before, after) == 1
    assert scale_of(before) == 0
    assert evaluate(before, after, samples(2), metric=None).agreement == 0.5


def test_40_samples_that_all_agree_are_not_enough_and_59_are() -> None:
    verdicts = {}
    for count in (40, 58, 59):
        answers = scores([i % 4 for i in range(count)])
        found = evaluate(answers, answers, samples(count), metric=None)
        verdicts[count] = gate.judge(
            Figures(
                size_bytes=1,
                samples=found.samples,
                agreement=found.agreement,
                agreement_low=found.agreement_low,
                drop=found.metric.drop,
                drop_high=found.drop_high,
            ),
            Budget(),
        )

    assert "about 59 evaluation samples would" in verdicts[40].unproven[0]
    assert verdicts[58].unproven
    assert verdicts[59].proven


def test_samples_of_one_group_show_nothing() -> None:
    answers = scores([0] * 50)

    found = evaluate(answers, answers, samples(50, groups=[7] * 50), metric=None)

    assert (found.groups, found.agreement) == (1, 1)
    assert (found.agreement_low, found.agreement_ci95, found.drop_high) == (None, None, None)


@given(ANSWERS)
def test_bounds_enclose_their_figures_and_survive_json(
    drawn: list[tuple[int, int, int, int]],
) -> None:
    before, after, labels, groups = (list(column) for column in zip(*drawn, strict=True))
    given_ = samples(len(drawn), labels, groups)

    found = evaluate(scores(before), scores(after), given_, metric=None)

    assert found == evaluate(scores(before), scores(after), given_, metric=None)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found
    assert found.flips is not None
    assert found.agreement == pytest.approx(1 - found.flips.rate)
    assert found.metric.drop == pytest.approx(found.metric.float_value - found.metric.value)
    if found.groups > 1:
        assert found.agreement_low is not None
        assert found.agreement_ci95 is not None
        assert 0 <= found.agreement_ci95[0] <= found.agreement_low <= 1


@pytest.mark.parametrize(
    ("name", "weights", "kind", "metric"),
    [
        ("classifier", (5, 3, 3, 3), "classes", "agreement"),
        ("segmenter", (5, 3, 3, 3), "masks", "iou"),
    ],
)
def test_a_model_with_rounded_weights_loses_a_little_in_the_real_engine(
    tmp_path: Path, name: str, weights: tuple[int, ...], kind: str, metric: str
) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(weights).astype(np.float32)
    pictures = rng.standard_normal((24, 3, 16, 16)).astype(np.float32)
    answers = [
        answers_of(
            tmp_path, convolution(np.round(kernel * steps) / np.float32(steps), name), pictures
        )
        for steps in (1 << 20, 8)
    ]

    found = evaluate(answers[0], answers[1], samples(24), metric=None)

    assert (found.kind, found.metric.name, found.metric.float_value) == (kind, metric, 1)
    assert 0.5 < found.metric.value <= 1
    assert found.drop_high is not None
    assert found.drop_high > found.metric.drop
    assert 0 < found.max_abs_error < 10 * found.scale


def convolution(kernel: NDArray[np.float32], name: str) -> onnx.ModelProto:
    """A convolution, for a classifier followed by the largest value of each channel."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    if name == "classifier":
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalMaxPool", ["c"], ["g"]),
            helper.make_node("Flatten", ["g"], ["y"]),
        ]
    shape: list[str | int | None] = ["n", 5] if name == "classifier" else ["n", 5, 16, 16]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(kernel, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def answers_of(folder: Path, model: onnx.ModelProto, pictures: NDArray[np.float32]) -> Outputs:
    path = folder / "model.onnx"
    onnx.save_model(model, path)
    session = ENGINES.get("onnxruntime").open(path, options={"threads": 1})
    try:
        return run_all(session, {"x": pictures})
    finally:
        session.close()


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
