"""Samples of the peer table: one at a time as a model takes them, divided by whole sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.build.samples import divide, feeds, load, spread, take

groups = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(
    lambda numbers: np.array(numbers, np.int64)
)


def test_a_file_is_read_with_all_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((3, 2)), groups=np.arange(3))

    found = load(tmp_path / "data.npz")

    assert {name: array.shape for name, array in found.items()} == {"x": (3, 2), "groups": (3,)}


def test_a_sample_is_a_batch_of_one_or_the_whole_input() -> None:
    arrays = {
        "picture": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "state": np.arange(12, dtype=np.float32).reshape(2, 2, 1, 3),
        "rate": np.array([8000, 16000]),
        "left out": np.zeros(2),
    }

    found = feeds(arrays, {"picture": 4, "state": 3, "rate": 0})

    assert [set(feed) for feed in found] == [{"picture", "state", "rate"}] * 2
    assert found[0]["picture"].shape == (1, 3, 2, 2)
    assert found[0]["state"].shape == (2, 1, 3)
    assert found[1]["rate"].shape == ()
    assert found[1]["rate"] == 16000
    np.testing.assert_array_equal(found[1]["picture"][0], arrays["picture"][1])


def test_a_tool_that_changes_its_input_does_not_change_the_data() -> None:
    arrays = {"x": np.zeros((2, 3), np.float32)}

    feeds(arrays, {"x": 2})[0]["x"][:] = 1

    assert not arrays["x"].any()


@given(groups, st.floats(0, 1))
def test_each_sample_is_on_one_side_and_a_source_is_never_on_both(
    numbers: NDArray[np.int64], share: float
) -> None:
    given_, held_out = divide(numbers, share)

    assert sorted([*given_, *held_out]) == list(range(len(numbers)))
    assert not set(numbers[given_]) & set(numbers[held_out])
    sources = len(np.unique(numbers))
    assert len(np.unique(numbers[given_])) == max(1, round(share * sources))


@given(groups)
def test_samples_are_divided_the_same_way_every_time(numbers: NDArray[np.int64]) -> None:
    first, again = divide(numbers, 0.5), divide(numbers, 0.5)

    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


@given(st.lists(st.integers(0, 10**6), max_size=80, unique=True).map(sorted), st.integers(2, 40))
def test_a_choice_is_spread_from_the_first_to_the_last(positions: list[int], most: int) -> None:
    chosen = spread(positions, most).tolist()

    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(positions)
    assert len(chosen) == min(most, len(positions))
    if positions:
        assert (chosen[0], chosen[-1]) == (positions[0], positions[-1])


def test_samples_are_taken_from_every_array() -> None:
    arrays = {"x": np.arange(10).reshape(5, 2), "groups": np.arange(5)}

    found = take(arrays, np.array([3, 1]))

    assert found["groups"].tolist() == [3, 1]
    assert found["x"].tolist() == [[6, 7], [2, 3]]
