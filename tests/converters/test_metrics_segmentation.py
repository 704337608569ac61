"""Masks are compared pixel by pixel, class by class, over all pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit_converters.metrics.segmentation import overlaps
from tests.converters.scoring_cases import figures, scored, value

MASKS = arrays(np.int64, (3, 4, 5), elements=st.integers(0, 2))


def test_iou_is_pixels_in_both_over_pixels_in_either() -> None:
    truth, mask = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 2]])

    both, either = overlaps(truth, mask, 3)

    assert both.tolist() == [1, 1, 0]
    assert either.tolist() == [2, 3, 1]


def test_the_mean_is_over_classes_and_all_pictures_together() -> None:
    labels = np.array([[[0, 0], [0, 1]], [[1, 1], [1, 1]]])
    masks = {"y": np.array([[[0, 0], [1, 1]], [[1, 1], [1, 0]]])}

    before, after = figures("iou", {"y": labels}, masks, labels)

    assert before == 1
    assert after == pytest.approx((2 / 4 + 4 / 6) / 2)


def test_pixels_with_a_negative_label_do_not_count() -> None:
    labels = np.array([[[0, -1, 1]]])
    wrong_there = {"y": np.array([[[0, 1, 1]]])}

    assert figures("iou", wrong_there, wrong_there, labels) == (1, 1)


def test_each_class_has_an_iou_of_its_own() -> None:
    labels = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    masks = {"y": np.array([[[0, 1, 1, 1]], [[0, 0, 0, 0]]])}

    classes = scored("iou", masks, masks, labels).classes

    assert {k: value(t.artefact, 2) for k, t in classes.items()} == {
        0: pytest.approx(5 / 6),
        1: pytest.approx(2 / 3),
    }
    assert classes[1].which.tolist() == [0]


@given(truth=MASKS, mask=MASKS)
def test_scores_in_any_layout_give_the_figure_of_their_masks(
    truth: NDArray[np.int64], mask: NDArray[np.int64]
) -> None:
    last = np.eye(3, dtype=np.float32)[mask]
    first = np.moveaxis(last, 3, 1)

    by_mask = figures("iou", {"y": mask}, {"y": mask}, truth)

    assert figures("iou", {"y": last}, {"y": last}, truth) == pytest.approx(by_mask)
    assert figures("iou", {"y": first}, {"y": first}, truth) == pytest.approx(by_mask)
    assert 0 <= by_mask[0] <= 1


@given(mask=MASKS, other=MASKS)
def test_without_labels_the_source_is_its_own_truth(
    mask: NDArray[np.int64], other: NDArray[np.int64]
) -> None:
    before, after = figures("iou", {"y": mask}, {"y": other})

    assert before == pytest.approx(1)
    assert after <= 1
    assert (after == pytest.approx(1)) == bool((mask == other).all())


def test_one_probability_by_pixel_is_a_mask_above_a_half() -> None:
    chances = {"y": np.array([[[[0.2, 0.7], [0.6, 0.4]]]], np.float32)}

    assert figures("iou", chances, chances, np.array([[[0, 1], [1, 0]]])) == (1, 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((1, 8, 8), np.int64), r"label masks are \[8, 8\].*\[4, 4\]"),
        (np.full((1, 4, 4), -1), "hold no pixel that counts"),
        (np.full((1, 4, 4), 3), "hold 3, the model has classes 0 to 2"),
    ],
)
def test_masks_that_do_not_fit_are_refused(labels: NDArray[np.int64], message: str) -> None:
    output = {"y": np.zeros((1, 3, 4, 4), np.float32)}

    with pytest.raises(DataError, match=message):
        scored("iou", output, output, labels)
