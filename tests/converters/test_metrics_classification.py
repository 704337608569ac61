"""A class is right or wrong, and the same as before or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from tests.converters.scoring_cases import figures, scored

PAIRS = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=30)


def scores(answers: list[int], classes: int = 6) -> dict[str, NDArray[np.float32]]:
    return {"scores": np.eye(classes, dtype=np.float32)[answers]}


def test_top1_compares_each_model_with_the_labels() -> None:
    labels = np.array([0, 1, 2, 0])

    assert figures("top1", scores([0, 1, 2, 3]), scores([0, 0, 0, 3]), labels) == (0.75, 0.25)


def test_agreement_compares_the_artefact_with_the_source() -> None:
    found = scored("agreement", scores([0, 1, 2, 3]), scores([0, 1, 2, 0]))

    assert found.reference == "float"
    assert found.scores is not None
    assert found.scores.tolist() == [1, 1, 1, 0]


def test_top5_counts_a_label_among_the_first_five() -> None:
    ranks = np.array([[9, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9]], np.float32)

    assert figures("top5", {"y": ranks}, {"y": -ranks}, np.array([5, 5])) == (0.5, 0.5)


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    flat = {"y": np.zeros((2, 6), np.float32)}

    assert figures("top5", flat, flat, np.array([4, 5])) == (0.5, 0.5)


def test_a_single_score_means_yes_above_a_half_or_above_zero() -> None:
    labels = np.array([0, 1, 1, 0])
    chances = {"p": np.array([[0.2], [0.9], [0.4], [0.1]], np.float32)}
    logits = {"p": np.array([-2, 3, -0.4, 0.3], np.float32)}

    assert figures("top1", chances, chances, labels) == (0.75, 0.75)
    assert figures("top1", logits, logits, labels) == (0.5, 0.5)


def test_the_threshold_is_the_sources_also_where_the_artefact_leaves_its_range() -> None:
    chances = {"p": np.array([[0.2], [0.9]], np.float32)}
    beyond = {"p": np.array([[0.3], [1.01]], np.float32)}

    assert figures("agreement", chances, beyond) == (1, 1)


def test_an_index_alone_is_compared_as_it_is() -> None:
    before, after = {"label": np.array([[7], [8]])}, {"label": np.array([[7], [9]])}

    assert figures("agreement", before, after) == (1, 0.5)
    assert figures("top1", before, after, np.array([7, 8])) == (1, 0.5)


def test_texts_agree_where_they_are_equal() -> None:
    before = {"label": np.array(["cat", "dog", "cow"])}
    after = {"label": np.array(["cat", "dog", "horse"])}

    assert figures("agreement", before, after) == pytest.approx((1, 2 / 3))


def test_an_index_beside_scores_is_not_what_counts() -> None:
    before = {"label": np.array([0, 1]), **scores([0, 1])}
    after = {"label": np.array([0, 1]), **scores([0, 2])}

    assert figures("agreement", before, after) == (1, 0.5)


@given(PAIRS)
def test_figures_are_shares_and_do_not_depend_on_the_order_of_samples(
    drawn: list[tuple[int, int, int]],
) -> None:
    before, after, labels = (list(column) for column in zip(*drawn, strict=True))

    one = figures("top1", scores(before), scores(after), np.array(labels))
    other = figures("top1", scores(before[::-1]), scores(after[::-1]), np.array(labels[::-1]))

    assert one == pytest.approx(other)
    assert all(0 <= share <= 1 for share in one)


@pytest.mark.parametrize(
    ("metric", "classes", "labels", "message"),
    [
        ("top1", 6, None, "needs labels"),
        ("top5", 6, None, "needs labels"),
        ("top5", 5, np.array([0]), "always among the first 5"),
        ("top1", 6, np.zeros((1, 2)), "one class a sample"),
    ],
)
def test_what_a_metric_cannot_do_is_refused(
    metric: str, classes: int, labels: NDArray[np.int64] | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as refusal:
        scored(metric, scores([0], classes), scores([0], classes), labels)

    assert refusal.value.hint
