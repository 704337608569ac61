"""Boxes are matched as the COCO evaluation does, and agree as people would say they do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import DataError, RecipeError
from edgekit_converters.metrics import boxes as boxes_
from edgekit_converters.metrics.boxes import read
from edgekit_converters.metrics.views import Outputs, View, recognise
from edgekit_runtime.pipeline import ious
from tests.converters.scoring_cases import figures, scored

Row = tuple[float, float, float, float, float, float]
CORNERS = st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(1, 50)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)

# A true box in each of two pictures, and a second one in the first.
LABELS = np.array(
    [[[0, 0, 10, 10, 0], [20, 20, 30, 30, 0]], [[0, 0, 10, 10, 1], [0, 0, 0, 0, -1]]], np.float32
)


def rows(*pictures: list[Row]) -> dict[str, NDArray[np.float32]]:
    table = np.zeros((len(pictures), max(map(len, pictures)), 6), np.float32)
    for target, found in zip(table, pictures, strict=True):
        target[: len(found)] = found
    return {"boxes": table}


PERFECT = rows([(0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 0)], [(0, 0, 10, 10, 0.7, 1)])


def test_boxes_that_are_all_found_are_as_good_as_can_be() -> None:
    assert figures("map50", PERFECT, PERFECT, LABELS) == pytest.approx((1, 1))
    assert figures("map", PERFECT, PERFECT, LABELS) == pytest.approx((1, 1))


def test_a_wrong_box_before_a_right_one_costs_precision() -> None:
    found = rows(
        [(0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.85, 0), (20, 20, 30, 30, 0.8, 0)],
        [(0, 0, 10, 10, 0.7, 1)],
    )

    # Class 0: precision 1 up to a recall of .5 (51 of 101 points), then 2 / 3. Class 1: 1.
    expected = ((51 + 50 * 2 / 3) / 101 + 1) / 2
    assert figures("map50", PERFECT, found, LABELS)[1] == pytest.approx(expected)


def test_a_second_box_on_the_same_object_is_wrong() -> None:
    twice = rows(
        [(0, 0, 10, 10, 0.9, 0), (0, 0, 10, 9, 0.85, 0), (20, 20, 30, 30, 0.8, 0)],
        [(0, 0, 10, 10, 0.7, 1)],
    )

    assert figures("map50", PERFECT, twice, LABELS)[1] < 1


def test_map_asks_for_tighter_boxes_than_map50() -> None:
    # An IoU of .8 counts for the overlaps .50 to .80, 7 of 10.
    loose = rows([(0, 0, 10, 8, 0.9, 0), (20, 20, 30, 28, 0.8, 0)], [(0, 0, 10, 8, 0.7, 1)])

    assert figures("map50", PERFECT, loose, LABELS)[1] == pytest.approx(1)
    assert figures("map", PERFECT, loose, LABELS)[1] == pytest.approx(0.7)


def test_precision_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(7)
    labels = np.full((12, 5, 5), -1.0, np.float32)
    table = np.zeros((12, 9, 6), np.float32)
    for truth, found in zip(labels, table, strict=True):
        low = rng.random((5, 2)) * 80
        truth[:, :4] = np.hstack([low, low + 5 + rng.random((5, 2)) * 30])
        truth[:, 4] = rng.integers(0, 3, 5)
        found[:, :4] = truth[rng.integers(0, 5, 9), :4] + rng.normal(0, 2, (9, 4))
        found[:, 4] = rng.random(9)
        found[:, 5] = rng.integers(0, 3, 9)

    # pycocotools 2.0, COCOeval(..., "bbox").stats[1] and stats[0] of these boxes.
    own = {"y": table}
    assert figures("map50", own, own, labels)[0] == pytest.approx(0.2167464, abs=1e-5)
    assert figures("map", own, own, labels)[0] == pytest.approx(0.0860254, abs=1e-5)


def test_raw_anchors_and_decoded_rows_are_read_as_the_same_boxes() -> None:
    centred = np.array([[5, 5, 10, 10], [5.2, 5, 10, 10], [25, 25, 10, 10]], np.float32)
    scores = np.array([[0.9, 0], [0.8, 0], [0, 0.6]], np.float32)
    sure = np.ones((3, 1), np.float32)
    # Nine more anchors that see nothing.
    last = np.pad(np.hstack([centred, scores]), ((0, 9), (0, 0)))
    first = np.pad(np.hstack([centred, sure, scores]), ((0, 9), (0, 0)))
    layouts = {"anchors_last": last.T[np.newaxis], "anchors_first": first[np.newaxis]}
    for layout, array in layouts.items():
        view = recognise({"y": array}, LABELS[:1])
        (found,) = read(view, {"y": array})

        assert view.layout == layout
        # The second anchor lies over the first.
        assert found.corners.tolist() == [[0, 0, 10, 10], [20, 20, 30, 30]]
        assert found.classes.tolist() == [0, 1]
        assert found.scores == pytest.approx([0.9, 0.6])


def test_boxes_of_the_tflite_operator_have_y_first() -> None:
    outputs: Outputs = {
        "boxes": np.array([[[1, 2, 3, 4], [0, 0, 0, 0]]], np.float32),
        "classes": np.array([[2, 0]], np.float32),
        "scores": np.array([[0.5, 0]], np.float32),
        "count": np.array([1.0], np.float32),
    }

    (found,) = read(recognise(outputs), outputs)

    assert found.corners.tolist() == [[2, 1, 4, 3]]
    assert (found.classes.tolist(), found.scores.tolist()) == ([2], [0.5])


@given(a=CORNERS, b=CORNERS, shift=st.floats(-100, 100))
def test_overlap_is_symmetric_within_0_and_1_and_does_not_depend_on_the_place(
    a: tuple[float, ...], b: tuple[float, ...], shift: float
) -> None:
    one, other = np.array([a]), np.array([b])

    overlap = ious(one, other)[0, 0]

    assert 0 <= overlap <= 1
    assert overlap == ious(other, one)[0, 0]
    assert overlap == pytest.approx(ious(one + shift, other + shift)[0, 0], abs=1e-6)
    assert ious(one, one)[0, 0] == pytest.approx(1)


def test_agreement_counts_boxes_with_a_partner_in_the_other_model() -> None:
    before = rows([(0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 0)], [(0, 0, 9, 9, 0.1, 0)])
    after = rows([(0, 0, 10, 9, 0.9, 0), (20, 20, 30, 30, 0.8, 1)], [(0, 0, 9, 9, 0.1, 0)])

    # Picture 1: one pair of four boxes' two. Picture 2: no sure box in either.
    assert figures("box_agreement", before, after) == pytest.approx((1, (2 / 4 + 1) / 2))


def test_a_box_just_below_the_threshold_is_still_a_partner() -> None:
    before, after = rows([(0, 0, 9, 9, 0.26, 0)]), rows([(0, 0, 9, 9, 0.24, 0)])

    assert figures("box_agreement", before, after) == (1, 1)


@given(st.lists(st.tuples(CORNERS, st.floats(0.3, 1), st.integers(0, 2)), min_size=1, max_size=6))
def test_a_detector_agrees_with_itself(
    found: list[tuple[tuple[float, float, float, float], float, int]],
) -> None:
    own = rows([(*corners, score, label) for corners, score, label in found])

    assert figures("box_agreement", own, own) == (1, 1)


def test_only_the_best_boxes_of_a_picture_count() -> None:
    table = np.zeros((1, 300, 6), np.float32)
    table[0, :, 2:4] = 1
    table[0, :, 4] = np.linspace(0.1, 0.9, 300)

    (found,) = read(View("boxes", "y", layout="rows"), {"y": table})

    assert len(found.scores) == boxes_.MOST_BOXES
    assert found.scores[0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (None, RecipeError, "needs labels"),
        (np.zeros((2, 3)), RecipeError, r"needs boxes as labels; they are \[2, 3\]"),
        (np.full((2, 3, 5), -1.0), DataError, "hold no box"),
    ],
)
def test_labels_that_are_no_boxes_are_refused(
    labels: NDArray[np.float64] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scored("map50", PERFECT, PERFECT, labels)
