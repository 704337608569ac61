"""Final answers agree where no score moved further than is allowed, however ties fell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit import golden
from edgekit.errors import BundleError
from edgekit.golden import AnyAnswer, Detections, Ranking
from edgekit.steps import Boxes, PostStep, Softmax, TopK
from edgekit_runtime import pipeline

FRAME = (pipeline.whole(100, 100),)
TOP3: tuple[PostStep, ...] = (TopK(k=3),)
ROWS = Boxes(family="rows", score_threshold=0.3, iou_threshold=None, max_detections=5)

scores = hnp.arrays(np.float32, 8, elements=st.floats(0, 1, width=32))
moves = hnp.arrays(np.float32, 8, elements=st.floats(-1, 1, width=32))
amounts = st.floats(0, 0.5)


def answers(steps: tuple[PostStep, ...], output: np.ndarray) -> tuple[AnyAnswer, ...]:
    steps = pipeline.thorough(steps)
    found = pipeline.finish(steps, {"y": output[np.newaxis]}, FRAME)
    return pipeline.answers_of(steps, found, 0)


def rows(values: np.ndarray) -> np.ndarray:
    """Boxes in a row that do not touch, with these scores."""
    corners = [[10 * i, 0, 10 * i + 8, 8, score, 0] for i, score in enumerate(values)]
    return np.array(corners, np.float32)


@given(scores, moves, amounts)
def test_scores_that_moved_by_so_much_are_no_further_apart(
    before: np.ndarray, direction: np.ndarray, most: float
) -> None:
    after = before + direction * np.float32(most)

    ranked = pipeline.gap(TOP3, answers(TOP3, after), answers(TOP3, before))
    boxed = pipeline.gap((ROWS,), answers((ROWS,), rows(after)), answers((ROWS,), rows(before)))

    assert ranked.score <= most + 1e-5
    assert boxed.score <= most + 1e-5
    assert boxed.iou == 1


def test_a_class_that_was_sure_and_is_gone_is_named() -> None:
    before = np.linspace(0.2, 0, 20)
    after = before.copy()
    after[15], after[0] = 0.9, 0
    best: tuple[PostStep, ...] = (TopK(k=1),)

    found = pipeline.gap(best, answers(best, after), answers(best, before))

    assert found.score == pytest.approx(0.9 - before[9])
    assert "class 15 with 0.9 is in one list only" in found.where


def test_of_one_place_the_class_still_counts() -> None:
    best: tuple[PostStep, ...] = (TopK(k=1),)

    found = pipeline.gap(
        best, answers(best, np.array([0.0, 0.9])), answers(best, np.array([0.9, 0.0]))
    )

    assert found.score == pytest.approx(0.9)


def test_a_box_without_a_counterpart_is_named() -> None:
    found = pipeline.gap(
        (ROWS,),
        answers((ROWS,), rows(np.array([0.9, 0.8]))),
        answers((ROWS,), rows(np.array([0.9]))),
    )

    assert found.score == pytest.approx(0.7)
    assert found.where == "box 10, 0, 18, 8 of class 0 with 0.8 has no counterpart"


def test_boxes_that_moved_overlap_less() -> None:
    moved = rows(np.array([0.9]))
    moved[:, [0, 2]] += 2

    found = pipeline.gap((ROWS,), answers((ROWS,), moved), answers((ROWS,), rows(np.array([0.9]))))

    assert found.iou == pytest.approx(6 / 10)
    assert found.score == 0


def test_where_a_weak_box_lies_does_not_count() -> None:
    moved = rows(np.array([0.2]))
    moved[:, [0, 2]] += 2

    found = pipeline.gap((ROWS,), answers((ROWS,), moved), answers((ROWS,), rows(np.array([0.15]))))

    assert found.iou == 1
    assert found.score == pytest.approx(0.05)


def test_probabilities_are_compared_class_by_class() -> None:
    steps: tuple[PostStep, ...] = (Softmax(),)

    found = pipeline.gap(
        steps, answers(steps, np.array([0.0, 0.0])), answers(steps, np.log([3.0, 1.0]))
    )

    assert found.score == pytest.approx(0.25)


def test_answers_of_other_kinds_never_agree() -> None:
    ranking = Ranking(indices=(1,), scores=(0.5,))
    boxes = Detections(boxes=(), scores=(), classes=())

    assert pipeline.gap((ROWS,), (ranking,), (boxes,)).score == float("inf")
    assert pipeline.gap((ROWS,), (), (boxes,)).score == float("inf")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "not JSON"),
        (b"{}", "input"),
        (b'{"input":"x","input_atol":0,"pictures":[],"variants":{}}', "pictures"),
        (
            b'{"input":"x","input_atol":0,"pictures":[{"entry":"golden/a.png","sample":0}],'
            b'"variants":{}}',
            "below golden/raw/",
        ),
        (
            b'{"input":"x","input_atol":0,"pictures":[{"entry":"golden/raw/a.png","sample":0}],'
            b'"variants":{"v":{"score_atol":0,"min_iou":1,"pictures":[]}}}',
            "another number of pictures",
        ),
    ],
)
def test_golden_answers_that_are_not_valid_are_refused(text: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why):
        golden.decode(text)
