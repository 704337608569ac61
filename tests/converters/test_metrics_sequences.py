"""Sequences are compared as people would read them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit_converters.metrics.sequences import distances, joined, similarities
from tests.converters.scoring_cases import figures, scored

TOKENS = st.lists(st.integers(0, 4), max_size=8).map(lambda row: np.array(row, np.int64))
PAIRS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5)


def steps(*rows: list[int], classes: int = 5) -> dict[str, NDArray[np.float32]]:
    return {"y": np.eye(classes, dtype=np.float32)[np.array(rows)]}


def letters(word: str) -> NDArray[np.int64]:
    return np.array([ord(letter) for letter in word], np.int64)


def plain_distance(a: list[int], b: list[int]) -> int:
    """The definition, step by step."""
    if not a or not b:
        return len(a) + len(b)
    best = min(plain_distance(a[1:], b), plain_distance(a, b[1:])) + 1
    return min(best, plain_distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_edit_distances_are_those_of_textbooks() -> None:
    pairs = [("kitten", "sitting"), ("flaw", "lawn"), ("", "abc"), ("same", "same"), ("", "")]
    a, b = ([letters(word) for word in column] for column in zip(*pairs, strict=True))

    assert distances(a, b).tolist() == [3, 2, 3, 0, 0]


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 2), max_size=4)] * 2), min_size=1, max_size=4))
def test_edit_distances_are_those_of_their_definition(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    a, b = ([np.array(row, np.int64) for row in column] for column in zip(*pairs, strict=True))

    assert distances(a, b).tolist() == [plain_distance(x, y) for x, y in pairs]


@given(PAIRS)
def test_similarity_is_symmetric_between_0_and_1_and_1_for_equals(
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> None:
    a, b = (list(column) for column in zip(*pairs, strict=True))

    found = similarities(a, b)

    assert ((found >= 0) & (found <= 1)).all()
    assert found.tolist() == similarities(b, a).tolist()
    assert similarities(a, a).tolist() == [1] * len(a)


def test_repeats_are_joined_unless_a_blank_stands_between() -> None:
    best = np.array([[0, 3, 3, 0, 3, 1], [2, 2, 2, 0, 0, 0]])

    assert [row.tolist() for row in joined(best, 0)] == [[3, 3, 1], [2]]


def test_scores_are_read_against_labels_without_blanks() -> None:
    source = steps([0, 3, 3, 0, 2, 0], [1, 1, 0, 0, 0, 0])
    artefact = steps([0, 3, 0, 3, 2, 0], [1, 0, 0, 0, 0, 0])
    labels = np.array([[3, 2, -1], [1, -1, -1]])

    assert figures("edit_distance", source, artefact, labels) == pytest.approx((1, (2 / 3 + 1) / 2))


def test_the_blank_is_the_last_class_where_labels_use_the_first() -> None:
    source = steps([4, 0, 0, 4, 1, 4])

    assert figures("edit_distance", source, source, np.array([[0, 1]])) == (1, 1)


def test_without_labels_the_blank_is_what_most_steps_say() -> None:
    source, artefact = steps([4, 4, 4, 0, 4, 4]), steps([4, 4, 0, 0, 0, 4])

    found = scored("edit_distance", source, artefact)

    assert found.reference == "float"
    assert figures("edit_distance", source, artefact) == (1, 1)


def test_steps_with_a_token_each_are_not_joined() -> None:
    source = steps([1, 1, 2, 2], [3, 3, 3, 0])
    labels = np.array([[1, 1, 2, 2], [3, 3, 3, -1]])

    assert figures("edit_distance", source, steps([1, 1, 1, 2], [3, 3, 3, 4]), labels) == (
        1,
        0.875,
    )


def test_integers_are_tokens_and_negative_ones_padding() -> None:
    before = {"y": np.array([[5, 6, 7], [5, -1, -1]])}
    after = {"y": np.array([[5, 7, -1], [5, -1, -1]])}

    assert figures("edit_distance", before, after) == pytest.approx((1, (2 / 3 + 1) / 2))


def test_steps_of_a_model_that_writes_time_first_are_found() -> None:
    source = steps([4, 4, 0, 4])["y"][:, :, np.newaxis]

    assert figures("edit_distance", {"y": source}, {"y": source}) == (1, 1)
