"""Quantiles out of counts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet import histogram
from edgekit.messages import LATENCY_EDGES_US

counts = st.dictionaries(st.integers(0, 89), st.integers(1, 1000), min_size=1)


@given(counts, counts, st.floats(0.01, 1.0))
def test_the_quantile_of_a_sum_lies_between_those_of_its_parts(
    first: dict[int, int], second: dict[int, int], share: float
) -> None:
    parts = [histogram.quantile_ms(part, share) or 0.0 for part in (first, second)]
    whole = histogram.quantile_ms(histogram.add(first, second), share)

    assert whole is not None
    assert min(parts) <= whole <= max(parts)


def test_a_quantile_is_the_upper_edge_of_its_bucket() -> None:
    found = {3: 98, 20: 1, 40: 1}

    assert histogram.quantile_ms(found, 0.5) == LATENCY_EDGES_US[3] / 1000
    assert histogram.quantile_ms(found, 0.99) == LATENCY_EDGES_US[20] / 1000
    assert histogram.quantile_ms({89: 1}, 0.5) == math.inf
    assert histogram.quantile_ms({}, 0.5) is None
