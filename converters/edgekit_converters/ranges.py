"""Ranges: what part of a tensor's values eight bits should stand for. Pure rules over histograms.

A histogram counts values in `BINS` equal bins over a span that holds zero, as the grid of every
quantised tensor does. A rule keeps what it thinks is worth keeping of the span.
"""

from __future__ import annotations

from math import ceil, gcd
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["minmax", "percentile", "mse", "entropy"]
Range = tuple[float, float]
Histogram = NDArray[np.int64]

BINS = 2048

_STEPS = 255
_LEVELS = 256
_STRIDE = 16
_LOST = 1e-9
_SHRINKS = np.linspace(1.0, 0.3, 36)
# Below it a step would be no normal number of float32.
_LEAST_WIDTH = 1e-35
_MOST_VALUES = 1 << 16


def with_zero(extremes: Range) -> Range:
    """The extremes widened until zero lies between them."""
    return min(extremes[0], 0.0), max(extremes[1], 0.0)


def counts_of(values: NDArray[Any], span: Range) -> Histogram:
    """How many values lie in each bin of the span; those beyond it count in its last bins.

    Of a tensor with more than 65,536 values an evenly spread part is counted. What is no number is
    left out, and a span without width counts nothing.
    """
    low, high = span
    if high - low < _LEAST_WIDTH:
        return np.zeros(BINS, np.int64)
    scaled = (_thinned(values.reshape(-1)).astype(np.float64) - low) * (BINS / (high - low))
    if np.isnan(scaled).any():
        scaled = scaled[~np.isnan(scaled)]
    positions = np.clip(scaled, 0, BINS - 1, out=scaled).astype(np.int32)
    return np.bincount(positions, minlength=BINS).astype(np.int64, copy=False)


def percentile_range(histogram: Histogram, span: Range, percentile: float) -> Range:
    """What leaves `(100 - percentile) / 2` per cent of values outside on either side."""
    total = histogram.sum()
    if total == 0:
        return span
    edges = np.linspace(*span, BINS + 1)
    share = np.cumsum(histogram) / total
    tail = (100 - percentile) / 200
    low = edges[int(np.searchsorted(share, tail, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1 - tail, side="left")) + 1, BINS)]
    return float(low), float(high)


def mse_range(histogram: Histogram, span: Range) -> Range:
    """The span shrunk by the factor that loses least, in mean squared error, at 255 steps.

    Source: Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3.1.
    """
    low, high = span
    if high - low < _LEAST_WIDTH:
        return span
    edges = np.linspace(*span, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    losses = []
    for shrink in _SHRINKS:
        step = (high - low) * shrink / _STEPS
        rounded = np.clip(np.round(centres / step) * step, low * shrink, high * shrink)
        losses.append(float(histogram @ np.square(centres - rounded)))
    best = float(_SHRINKS[int(np.argmin(losses))])
    return low * best, high * best


def entropy_range(histogram: Histogram, span: Range) -> Range:
    """The span shrunk by the factor whose 256 levels tell most of what the values told.

    Least is lost where the Kullback-Leibler divergence between the values, clipped to the window,
    and their form in 256 levels is smallest. Of equal windows the widest is taken. Zero is on every
    grid and costs nothing, so its bin, which after a ReLU holds most values, counts like the bins
    beside it.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017; there the window is symmetric, here
    it keeps zero where it is.
    """
    if histogram.sum() == 0 or span[1] - span[0] < _LEAST_WIDTH:
        return span
    below = -span[0] / (span[1] - span[0]) * BINS
    counts = histogram.astype(np.float64)
    zero = min(int(below), BINS - 1)
    beside = [counts[i] for i in (zero - 1, zero + 1) if 0 <= i < BINS]
    counts[zero] = min(counts[zero], np.mean(beside))
    best, least = 1.0, np.inf
    for size in range(BINS, _LEVELS - 1, -_STRIDE):
        start = min(round(below * (1 - size / BINS)), BINS - size)
        divergence = _divergence(counts, start, start + size)
        if divergence < least:
            best, least = size / BINS, divergence
    return span[0] * best, span[1] * best


def _divergence(counts: NDArray[np.float64], start: int, end: int) -> float:
    """Between the values clipped to a window of bins, and those inside it in 256 levels."""
    inside = counts[start:end]
    if not inside.any():
        return np.inf
    clipped = inside.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[end:].sum()
    edges = np.linspace(0, len(inside), _LEVELS + 1).astype(np.intp)
    occupied = inside > 0
    members = np.add.reduceat(occupied.astype(np.float64), edges[:-1])
    means = np.add.reduceat(inside, edges[:-1]) / np.maximum(members, 1)
    coarse = np.where(occupied, np.repeat(means, np.diff(edges)), 0.0)
    seen = clipped > 0
    true = clipped[seen] / clipped.sum()
    told = np.maximum(coarse[seen] / coarse.sum(), _LOST)
    return float(true @ np.log(true / told))


def _thinned(values: NDArray[Any]) -> NDArray[Any]:
    """Every n-th value; n shares no factor with their number, so no row or column is favoured."""
    step = ceil(values.size / _MOST_VALUES)
    while gcd(step, values.size) > 1:
        step += 1
    return values[::step]
