"""A device serves only what it computes as the build did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import GoldenMismatch
from edgekit_runtime.probe import compare, probe
from edgekit_runtime.serving.opener import open_variant
from tests import bundles

floats = st.floats(-1e6, 1e6, width=32)


def test_what_the_build_computed_is_reproduced(tmp_path: Path) -> None:
    bundle = bundles.unpacked(tmp_path)
    variant = bundle.manifest.variants[0]

    result = probe(bundle, variant, open_variant(bundle, variant))

    assert result.samples == 3
    assert result.own_error == result.reference_error == {"y": 0.0}
    assert result.latency_ms > 0


def test_a_difference_is_named_with_its_place_and_values(tmp_path: Path) -> None:
    bundle = bundles.unpacked(tmp_path, broken_golden=True)
    variant = bundle.manifest.variants[0]

    with pytest.raises(GoldenMismatch, match=r"output 'y' at \[\d, \d\] is .*, golden is"):
        probe(bundle, variant, open_variant(bundle, variant))


@given(hnp.arrays(np.float32, (3, 4), elements=floats), st.floats(0, 10), st.integers(0, 11))
def test_the_tolerance_decides(array: np.ndarray, atol: float, index: int) -> None:
    want = array.copy()
    want.flat[index] += 1
    error = abs(float(want.flat[index]) - float(array.flat[index]))
    assume(error != atol)

    if error > atol:
        with pytest.raises(GoldenMismatch):
            compare({"y": array}, {"y": want}, atol=atol, rtol=0.0, what="v")
    else:
        assert compare({"y": array}, {"y": want}, atol=atol, rtol=0.0, what="v") == {"y": error}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_tolerance_forgives_a_nan_or_infinity(bad: float) -> None:
    good, wrong = np.array([1.0, 2.0]), np.array([1.0, bad])

    assert compare({"y": wrong}, {"y": wrong}, atol=0, rtol=0, what="v") == {"y": 0.0}
    for got, want in ((good, wrong), (wrong, good)):
        with pytest.raises(GoldenMismatch, match=r"at \[1\]"):
            compare({"y": got}, {"y": want}, atol=1e30, rtol=1.0, what="v")


def test_a_missing_output_or_another_shape_is_named() -> None:
    with pytest.raises(GoldenMismatch, match="no output 'y'"):
        compare({"z": np.zeros(1)}, {"y": np.zeros(1)}, atol=1, rtol=0, what="v")
    with pytest.raises(GoldenMismatch, match="shape"):
        compare({"y": np.zeros(1)}, {"y": np.zeros(2)}, atol=1, rtol=0, what="v")
