"""Numbers are judged by their distance, embeddings by direction and neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit_converters.metrics.embeddings import neighbours
from edgekit_converters.metrics.spread import spread
from tests.converters.scoring_cases import figures, scored

VECTORS = arrays(np.float64, (6, 4), elements=st.floats(-100, 100).map(lambda x: round(x, 3)))


def y(*rows: list[float]) -> dict[str, NDArray[np.float64]]:
    return {"y": np.array(rows)}


# Errors.


def test_mse_is_relative_to_the_variance_of_the_source() -> None:
    assert figures("mse", y([0, 2], [0, 2]), y([0.5, 2.5], [0.5, 2.5])) == (1, 0.75)


def test_mae_is_relative_to_the_distance_from_the_median() -> None:
    assert figures("mae", y([0, 2], [0, 4]), y([1, 2], [0, 4])) == pytest.approx(
        (1, 1 - 0.25 / 1.5)
    )


def test_each_target_counts_in_a_unit_of_its_own() -> None:
    targets = np.array([[0.0, 0.0], [2.0, 2000.0]])
    exact, off = {"y": targets}, {"y": targets + np.array([1, 1000])}

    for column in range(2):
        alone = targets[:, [column]]
        assert figures("mse", {"y": alone}, {"y": off["y"][:, [column]]}, alone) == (1, 0)
    assert figures("mse", exact, off, targets) == (1, 0)


def test_targets_judge_both_models() -> None:
    targets = np.array([1.0, 2, 3, 4])
    mean = {"y": np.full((4, 1), 2.5)}

    found = scored("mse", mean, {"y": targets[:, np.newaxis]}, targets)

    assert found.reference == "labels"
    assert figures("mse", mean, {"y": targets[:, np.newaxis]}, targets) == (0, 1)


def test_targets_that_fit_no_output_are_refused_with_the_shapes() -> None:
    with pytest.raises(RecipeError, match=r"labels \[2, 3\] fit no output.*'y' \[2, 2\]"):
        scored("mse", y([0, 1], [2, 3]), y([0, 1], [2, 3]), np.zeros((2, 3)))


def test_outputs_without_numbers_are_refused() -> None:
    texts = {"y": np.array([["a", "b"]])}

    with pytest.raises(RecipeError, match="needs numbers"):
        scored("cosine", texts, texts)


@given(vectors=VECTORS, metric=st.sampled_from(["mse", "mae", "cosine", "retrieval"]))
def test_a_model_is_as_good_as_can_be_against_itself(
    vectors: NDArray[np.float64], metric: str
) -> None:
    assert figures(metric, {"y": vectors}, {"y": vectors}) == pytest.approx((1, 1))


@given(vectors=VECTORS, scale=st.floats(0.1, 10))
def test_errors_do_not_depend_on_the_unit(vectors: NDArray[np.float64], scale: float) -> None:
    off = vectors + np.linspace(-1, 1, vectors.size).reshape(vectors.shape)
    if vectors.std() < 0.1:
        return

    one = figures("mse", {"y": vectors}, {"y": off})
    other = figures("mse", {"y": vectors * scale}, {"y": off * scale})

    assert one == pytest.approx(other)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_error_never_scores_better(a: float, b: float) -> None:
    source = np.arange(12.0).reshape(3, 4)
    small, large = sorted((a, b))

    near = figures("mae", {"y": source}, {"y": source + small})[1]
    far = figures("mae", {"y": source}, {"y": source + large})[1]

    assert far <= near + 1e-12


def test_large_outputs_are_read_in_blocks_with_the_same_result() -> None:
    source = np.random.default_rng(0).random((5, 1 << 20), np.float32)
    off = source + np.arange(5, dtype=np.float32)[:, np.newaxis] / 10

    found = scored("mae", {"y": source}, {"y": off}).scores

    assert found is not None
    np.testing.assert_allclose(found, 1 - np.arange(5) / 10 / 0.25, atol=2e-3)


# Embeddings.


def test_cosine_looks_at_direction_alone() -> None:
    before = y([1, 0], [0, 2], [3, 0], [0, 0])

    found = scored("cosine", before, y([5, 0], [2, 0], [-3, 0], [0, 0]))

    assert found.scores is not None
    assert found.scores.tolist() == [1, 0, -1, 1]


def test_a_neighbour_is_the_nearest_of_the_others() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1.0]])

    assert neighbours(vectors).tolist() == [1, 0, 3, 2]


def test_retrieval_counts_neighbours_that_stay_or_that_have_the_same_label() -> None:
    before = y([1, 0], [1, 0.1], [0, 1], [0.1, 1.0])
    after = y([1, 0], [0, 1.1], [0, 1], [1.0, 0.1])

    assert figures("retrieval", before, after) == (1, 0)
    assert figures("retrieval", before, after, np.array([0, 0, 1, 1])) == (1, 0)
    assert figures("retrieval", before, after, np.array([0, 1, 1, 0])) == (0, 1)


@given(VECTORS)
def test_neighbours_do_not_depend_on_length(vectors: NDArray[np.float64]) -> None:
    vectors = vectors + np.arange(6)[:, np.newaxis] * 1e-3 + np.array([0, 1e-3, 0, 1])

    assert neighbours(vectors).tolist() == neighbours(vectors * 4).tolist()


def test_one_sample_has_no_neighbour() -> None:
    with pytest.raises(RecipeError, match="two samples"):
        scored("retrieval", y([1, 2]), y([1, 2]))


# Spread.


def test_an_output_that_is_cut_off_or_stuck_shows_in_its_spread() -> None:
    values = np.random.default_rng(0).standard_normal((50, 4))
    values[:, 3] = 0.5

    found, clipped = spread(values), spread(np.clip(values, -1, 1))

    assert found is not None
    assert clipped is not None
    assert (found.saturated, found.constant) == (0, 0.25)
    assert clipped.saturated == pytest.approx((np.abs(values) >= 1).mean())
    assert (clipped.low, clipped.high) == (-1, 1)


def test_a_spread_is_over_numbers_that_are_numbers() -> None:
    found = spread(np.array([[1.0, np.nan], [3.0, np.inf]]))

    assert found is not None
    assert (found.mean, found.finite) == (2, 0.5)
    assert spread(np.full((2, 2), np.nan)) is None
    assert spread(np.array([["a"]])) is None
