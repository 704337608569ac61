"""Histogram: latencies counted by bucket. The edges are the same everywhere, so counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from edgekit.messages import LATENCY_EDGES_US


def add(*histograms: Mapping[int, int]) -> dict[int, int]:
    """The counts of several histograms together, by bucket."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram)
    return dict(sorted(total.items()))


def quantile_ms(histogram: Mapping[int, int], share: float) -> float | None:
    """The latency in milliseconds that `share` (0 to 1) of the requests did not exceed.

    The answer is the upper edge of its bucket: at most 19 % too high (a quarter of a doubling),
    never too low. `None` without requests, and infinity above the last edge (67 s).
    """
    total = sum(histogram.values())
    if total == 0:
        return None
    below = 0
    for bucket, count in sorted(histogram.items()):
        below += count
        if below >= share * total:
            return upper_edge_ms(bucket)
    raise AssertionError("the counts add up to the total")


def upper_edge_ms(bucket: int) -> float:
    """Where a bucket ends, in milliseconds."""
    inside = bucket < len(LATENCY_EDGES_US)
    return LATENCY_EDGES_US[bucket] / 1000 if inside else float("inf")
