"""Calibration sees what samples do to a model's tensors, and picks ranges by known rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from edgekit_converters import calibrate
from edgekit_converters.calibrate import KEPT_CALIBRATORS, MAX_SAMPLES, Calibration, Calibrator
from edgekit_converters.normalise import spec_of
from edgekit_converters.ranges import (
    BINS,
    Histogram,
    Method,
    counts_of,
    entropy_range,
    mse_range,
    percentile_range,
    with_zero,
)
from tests.converters.passes_models import graph_of, noise, run, small_convnet

METHODS: tuple[Method, ...] = get_args(Method)
PICTURES = noise(9, 12, 8, 16, 16)


def calibrator(
    model: onnx.ModelProto, scratch: Path, arrays: dict[str, NDArray[Any]] | None = None
) -> Calibrator:
    specs = tuple(spec_of(value) for value in model.graph.input)
    given_arrays = arrays if arrays is not None else {"x": PICTURES}
    return Calibrator(model, inputs=specs, arrays=given_arrays, scratch=scratch)


def masked() -> onnx.ModelProto:
    """x [1, 4]; `m` is minus infinity where x is negative; `y` is 1 / (1 + exp(-x))."""
    return graph_of(
        [
            helper.make_node("Log", ["x"], ["m"], "log"),
            helper.make_node("Sigmoid", ["x"], ["y"], "sigmoid"),
        ],
        inputs={"x": [1, 4]},
        outputs={"m": [1, 4], "y": [1, 4]},
    )


class Counted:
    """Samples that can be read by slices of axis 0 alone; it notes the longest."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.longest = 0

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        taken = self._array[rows]
        self.longest = max(self.longest, len(taken))
        return taken


# Observing.


def test_extremes_are_those_of_the_samples(tmp_path: Path) -> None:
    ranges = calibrator(small_convnet(), tmp_path).ranges("minmax")

    (y,) = run(small_convnet(batch="N"), x=PICTURES)
    assert ranges["x"] == (PICTURES.min(), PICTURES.max())
    np.testing.assert_allclose(ranges["y"], (y.min(), y.max()), rtol=1e-4)
    assert ranges["r"][0] == 0


@pytest.mark.parametrize("method", METHODS)
def test_ranges_lie_within_the_extremes_and_are_the_same_each_time(
    method: Method, tmp_path: Path
) -> None:
    first, second = (calibrator(small_convnet(), tmp_path).ranges(method) for _ in range(2))
    extremes = calibrator(small_convnet(), tmp_path).ranges("minmax")

    assert first == second
    assert first.keys() == extremes.keys()
    for name, (low, high) in first.items():
        least, most = with_zero(extremes[name])
        assert least - 1e-6 <= low <= high <= most + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_small_budget_of_memory_changes_no_range(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = calibrator(small_convnet(), tmp_path).ranges(method)
    monkeypatch.setattr(calibrate, "_ACTIVATION_BUDGET_BYTES", 1)

    assert calibrator(small_convnet(), tmp_path).ranges(method) == wanted


def test_a_tensor_that_was_infinite_has_no_range(tmp_path: Path) -> None:
    samples = np.array([[1, 2, 3, 4], [0, 1, 2, 3]], np.float32)

    ranges = calibrator(masked(), tmp_path, {"x": samples}).ranges("minmax")

    assert ranges.keys() == {"x", "y"}


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_no_number_are_passed_over(method: Method, tmp_path: Path) -> None:
    clean = np.array([[1, 2, 3, 4], [2, 1, 2, 3]], np.float32)
    spoilt = np.vstack([clean, np.full((1, 4), np.nan, np.float32)])

    wanted, found = (
        calibrator(masked(), tmp_path, {"x": samples}).ranges(method) for samples in (clean, spoilt)
    )

    assert found == wanted


def test_means_are_those_of_each_channel(tmp_path: Path) -> None:
    means = calibrator(small_convnet(), tmp_path).means({"x": 1, "f": 1})

    np.testing.assert_allclose(means["x"], PICTURES.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert means["f"].shape == (32,)


def test_no_more_than_one_sample_is_read_at_a_time_and_few_of_many(tmp_path: Path) -> None:
    model = small_convnet()
    samples = Counted(noise(9, 3 * MAX_SAMPLES, 8, 16, 16))
    observed = Calibrator(
        model,
        inputs=(spec_of(model.graph.input[0]),),
        arrays={"x": samples},  # type: ignore[dict-item]
        scratch=tmp_path,
    )

    observed.ranges("mse")

    assert samples.longest == 1
    assert len(list(observed.activations(["y"]))) == MAX_SAMPLES


def test_activations_come_sample_by_sample_and_leave_nothing_behind(tmp_path: Path) -> None:
    steps: Iterator[dict[str, NDArray[Any]]]
    steps = calibrator(small_convnet(), tmp_path).activations(["x", "r", "y"])

    shapes = [{name: array.shape for name, array in tensors.items()} for tensors in steps]

    assert shapes == [{"x": (1, 8, 16, 16), "r": (1, 32, 14 + 2, 16), "y": (1, 10)}] * len(PICTURES)
    assert list(tmp_path.iterdir()) == []


def test_equal_models_share_what_was_observed_and_old_ones_are_forgotten(tmp_path: Path) -> None:
    models = [small_convnet() for _ in range(KEPT_CALIBRATORS + 1)]
    for number, model in enumerate(models):
        model.graph.node[0].name = f"conv{number}"
    calibration = Calibration(
        inputs=(spec_of(models[0].graph.input[0]),), arrays={"x": PICTURES}, scratch=tmp_path
    )
    again = onnx.ModelProto()
    again.CopyFrom(models[0])

    first = calibration.of(models[0])
    assert calibration.of(again) is first
    for model in models[1:]:
        assert calibration.of(model) is not first

    assert calibration.of(models[0]) is not first


# Counting.


@given(size=st.integers(1, 300_000), seed=st.integers(0, 99))
def test_a_large_tensor_is_counted_in_part_and_evenly(size: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0, 1, size).astype(np.float32)

    counts = counts_of(values, (0.0, 1.0))

    assert counts.sum() <= min(size, 1 << 16)
    assert size > 1 << 16 or counts.sum() == size
    half = counts[: BINS // 2].sum() / counts.sum()
    assert abs(half - (values < 0.5).mean()) <= (0 if size <= 1 << 16 else 0.02) + 1e-9


def test_values_beyond_the_span_count_in_its_last_bins() -> None:
    counts = counts_of(np.array([-5, 0.5, 7, np.nan], np.float32), (0.0, 1.0))

    assert (counts[0], counts[BINS // 2], counts[-1]) == (1, 1, 1)
    assert counts.sum() == 3


def test_a_span_without_width_counts_nothing_and_stays() -> None:
    counts = counts_of(np.zeros(5, np.float32), (0.0, 0.0))

    assert counts.sum() == 0
    assert mse_range(counts, (0.0, 0.0)) == (0.0, 0.0)
    assert entropy_range(counts, (0.0, 0.0)) == (0.0, 0.0)
    assert percentile_range(counts, (0.0, 0.0), 99.9) == (0.0, 0.0)


# Choosing.


@given(seed=st.integers(0, 1000), skew=st.floats(0.1, 20), percentile=st.floats(60, 100))
def test_a_percentile_leaves_at_most_its_share_outside(
    seed: int, skew: float, percentile: float
) -> None:
    values = np.random.default_rng(seed).beta(1, skew, 5000) * 4 - 1
    histogram = counts_of(values, (-1.0, 3.0))

    low, high = percentile_range(histogram, (-1.0, 3.0), percentile)

    edges = np.linspace(-1, 3, BINS + 1)
    outside = histogram[(edges[1:] <= low) | (edges[:-1] >= high)].sum()
    assert low <= high
    assert outside <= (100 - percentile) / 100 * histogram.sum() + 1e-6


def test_one_outlier_is_clipped_by_mse() -> None:
    assert mse_range(with_an_outlier(), (0.0, 10.0))[1] < 10.0


def test_one_outlier_is_clipped_by_entropy() -> None:
    assert entropy_range(with_an_outlier(), (0.0, 10.0))[1] < 3.0


def with_an_outlier() -> Histogram:
    histogram = np.zeros(BINS, np.int64)
    histogram[:200] = 10_000 * np.exp(-np.arange(200) / 40)
    histogram[-1] = 1
    return histogram


def test_entropy_keeps_all_of_a_uniform_distribution() -> None:
    assert entropy_range(np.full(BINS, 1000), (-1.0, 3.0)) == (-1.0, 3.0)


def test_entropy_cuts_the_tails_of_a_normal_distribution_far_out() -> None:
    edges = np.linspace(-10, 10, BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    histogram = np.round(1e6 * np.exp(-(centres**2) / 2)).astype(np.int64)

    low, high = entropy_range(histogram, (-10.0, 10.0))

    assert low == pytest.approx(-high, abs=0.02)
    assert 2.5 < high < 6


def test_entropy_does_not_mind_the_zeros_of_a_relu() -> None:
    histogram = np.round(1e4 * np.exp(-np.arange(BINS) / 300)).astype(np.int64)
    spiked = histogram.copy()
    spiked[0] = 10**8

    plain, zeros = (entropy_range(counts, (0.0, 6.0)) for counts in (histogram, spiked))

    assert zeros == plain


@given(
    seed=st.integers(0, 10_000),
    low=st.floats(-1e30, 0),
    high=st.floats(0, 1e30),
    method=st.sampled_from([mse_range, entropy_range]),
)
def test_a_clipped_range_lies_in_its_span_and_keeps_zero_where_it_was(
    seed: int, low: float, high: float, method: Any
) -> None:
    histogram = np.random.default_rng(seed).poisson(0.5, BINS)

    found_low, found_high = method(histogram, (low, high))

    assert low <= found_low <= 0 <= found_high <= high
    assert found_low * high == pytest.approx(found_high * low, rel=1e-6)
