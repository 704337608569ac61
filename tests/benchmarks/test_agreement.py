"""The peer table's measures of agreement: equal answers are 1, and each counts what it says."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from benchmarks.build.agreement import cosine, counts, interval, ratio
from benchmarks.build.models.entry import Agreement

KINDS: tuple[Agreement, ...] = get_args(Agreement)
SHAPES = {
    "top1": (7,),
    "lines": (5, 4),
    "neighbours": (3,),
    "threshold": (1,),
    "odds": (1,),
    "mask": (4, 4),
    "boxes": (1, 6, 12),
}
GROUPS = np.repeat(np.arange(4), 2)


def answers(kind: str, seed: int = 0) -> NDArray[np.float32]:
    """Random answers of eight samples; for boxes those of a YOLOv8 head, in pixels."""
    found = np.random.default_rng(seed).random((len(GROUPS), *SHAPES[kind]), np.float32)
    if kind == "boxes":
        found[:, :, :2] *= 100
        found[:, :, 2:4] = 5 + 10 * found[:, :, 2:4]
    return found


def box(x: float, y: float, side: float, scores: tuple[float, float]) -> list[float]:
    return [x, y, side, side, *scores]


def head(*boxes: list[float]) -> NDArray[np.float32]:
    """What a YOLOv8 head writes for one picture: [1, 1, 6, boxes]."""
    return np.array(boxes, np.float32).T[np.newaxis, np.newaxis]


def agreed(kind: str, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return ratio(counts(kind, ours, theirs, np.arange(len(ours))))


@pytest.mark.parametrize("kind", KINDS)
def test_an_artefact_that_answers_the_same_agrees_in_everything(kind: str) -> None:
    same = answers(kind)

    table = counts(kind, same, same, GROUPS)

    assert table.shape == (len(GROUPS), 2)
    assert ratio(table) == 1
    assert interval(table, GROUPS) == (1, 1)
    assert cosine(kind, same, same) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(1, 1000))
def test_what_agrees_is_never_more_than_what_there_is(kind: str, seed: int) -> None:
    table = counts(kind, answers(kind), answers(kind, seed), GROUPS)

    assert (table >= 0).all()
    assert (table[:, 0] <= table[:, 1]).all()
    low, high = interval(table, GROUPS)
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_another_shape_are_no_answers(kind: str) -> None:
    with pytest.raises(ValueError, match="answers have shape"):
        counts(kind, answers(kind), answers(kind)[:4], GROUPS)


def test_a_class_is_the_largest_score() -> None:
    ours = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    theirs = np.array([[0.4, 0.6], [0.3, 0.7]], np.float32)

    assert agreed("top1", ours, theirs) == 0.5


def test_a_line_is_read_without_repeats_and_blanks() -> None:
    symbols = np.eye(4, dtype=np.float32)
    spelled = symbols[[1, 1, 0, 2, 2, 3]][np.newaxis]
    slower = symbols[[1, 0, 0, 2, 3, 3]][np.newaxis]
    doubled = symbols[[1, 0, 1, 2, 3, 3]][np.newaxis]

    assert agreed("lines", spelled, slower) == 1
    assert agreed("lines", spelled, doubled) == 0


def test_a_neighbour_is_looked_for_in_other_groups_alone() -> None:
    ours = np.array([[1, 0], [1, 0.01], [0.9, 0.1], [0, 1]], np.float32)
    theirs = np.array([[1, 0], [1, 0.01], [0, 1], [0.9, 0.1]], np.float32)

    apart = counts("neighbours", ours, theirs, np.array([0, 0, 1, 2]))
    alone = counts("neighbours", ours, theirs, np.arange(4))

    # The first two are nearest to each other in both; asked for others, they name another one.
    assert apart[:2, 0].tolist() == [0, 0]
    assert alone[:2, 0].tolist() == [1, 1]


def test_probabilities_are_compared_at_a_half_or_by_their_odds() -> None:
    ours = np.array([[0.49], [0.9]], np.float32)
    theirs = np.array([[0.51], [0.91]], np.float32)

    assert agreed("threshold", ours, theirs) == 0.5
    assert agreed("odds", ours, theirs) == 1
    assert agreed("odds", ours, np.array([[0.49], [0.99]], np.float32)) == 0.5


def test_masks_are_compared_by_the_pixels_that_either_has() -> None:
    ours = np.zeros((1, 2, 2), np.float32)
    theirs = np.zeros((1, 2, 2), np.float32)
    ours[0, 0], theirs[0, :, 0] = 1, 1

    assert agreed("mask", ours, theirs) == pytest.approx(1 / 3)
    assert agreed("mask", np.zeros_like(ours), np.zeros_like(ours)) == 1


def test_boxes_match_where_class_and_place_are_the_same() -> None:
    ours = head(box(20, 20, 10, (0.9, 0)), box(60, 60, 10, (0.8, 0)))
    moved = head(box(21, 20, 10, (0.5, 0)), box(90, 60, 10, (0.8, 0)))
    renamed = head(box(20, 20, 10, (0, 0.9)), box(60, 60, 10, (0.8, 0)))

    assert agreed("boxes", ours, moved) == 0.5
    assert agreed("boxes", ours, renamed) == 0.5


def test_a_box_counts_once_and_from_a_score_of_a_twentieth() -> None:
    ours = head(box(20, 20, 10, (0.9, 0)), box(20, 21, 10, (0.8, 0)))
    faint = head(box(20, 20, 10, (0.9, 0)), box(80, 80, 10, (0.04, 0)))

    assert counts("boxes", ours, faint, np.zeros(1, np.int64)).tolist() == [[2, 2]]


def test_corners_in_pixels_do_not_drown_scores() -> None:
    ours = head(box(300, 300, 10, (0.9, 0)))
    theirs = head(box(300, 300, 10, (0, 0.9)))

    assert cosine("boxes", ours, theirs) == 0


def test_an_answer_that_is_no_number_has_no_direction() -> None:
    ours = np.ones((2, 3), np.float32)
    theirs = np.array([[1, 1, 1], [np.nan, 1, 1]], np.float32)

    assert cosine("top1", ours, theirs) == pytest.approx(0.5)


tables = hnp.arrays(np.float64, (8, 1), elements=st.sampled_from([0.0, 1.0])).map(
    lambda right: np.hstack([right, np.ones((8, 1))])
)


@given(tables)
def test_an_interval_holds_the_figure_and_is_the_same_every_time(
    table: NDArray[np.float64],
) -> None:
    low, high = interval(table, GROUPS)

    assert low - 1e-9 <= ratio(table) <= high + 1e-9
    assert interval(table, GROUPS) == (low, high)


@given(tables)
def test_samples_of_one_source_are_drawn_together(table: NDArray[np.float64]) -> None:
    one_source = np.zeros(8, np.int64)

    low, high = interval(table, one_source)

    assert low == high == pytest.approx(ratio(table))
