"""Tensor data on the wire: JSON, raw values, strings and classes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving import data


class _Page(msgspec.Struct):
    """A JSON tensor as `_Input` takes it."""

    data: msgspec.Raw


def _from_json(values: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
    raw = msgspec.json.decode(json.dumps({"data": values}).encode(), type=_Page).data
    return data.from_json(raw, spec, shape)


# FP16 has no JSON form.
NUMERIC = [name for name in DTYPES if name not in ("BYTES", "FP16")]


@given(st.data(), st.sampled_from(NUMERIC))
def test_json_data_survives_there_and_back(source: st.DataObject, datatype: Any) -> None:
    shapes = hnp.array_shapes(max_dims=3, max_side=4)
    finite = {"allow_nan": False, "allow_infinity": False}
    options = finite if datatype.startswith("FP") else {}
    array = source.draw(hnp.arrays(DTYPES[datatype], shapes, elements=options or None))
    spec = TensorSpec(name="x", datatype=datatype, shape=array.shape)

    back = _from_json(data.to_json(array, name="x"), spec, array.shape)

    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("UINT8", [256]), ("UINT8", [-1]), ("INT8", [1.5]), ("INT64", [2**63]), ("BOOL", [1]),
        ("FP32", ["1"]), ("FP32", [1e39]), ("FP32", [None]), ("FP32", [[1], [2, 3]]),
        ("FP32", [1, 2]), ("FP32", {}), ("INT32", [True]), ("BYTES", [1]), ("FP16", [1.0]),
        ("UINT64", [2**63, 0.5]), ("UINT64", [2**63, -1]),
    ],
)  # fmt: skip
def test_values_that_a_datatype_cannot_hold_are_refused(datatype: Any, values: Any) -> None:
    shape = (len(values),) if datatype == "UINT64" else (1,)
    with pytest.raises(RequestError, match="input 'x'"):
        _from_json(values, TensorSpec(name="x", datatype=datatype, shape=shape), shape)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_strings_survive_there_and_back(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items

    back = data.from_strings(memoryview(data.to_binary(array)), (len(items),), name="x")

    assert back.tolist() == items


@given(st.binary(max_size=60), st.integers(1, 5))
def test_bytes_that_are_no_strings_are_refused(raw: bytes, count: int) -> None:
    try:
        array = data.from_strings(memoryview(raw), (count,), name="x")
    except RequestError:
        return
    assert data.to_binary(array) == raw


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_cannot_carry_must_be_asked_for_in_binary(value: float) -> None:
    with pytest.raises(RequestError, match="NaN or infinity"):
        data.to_json(np.array([value], dtype=np.float32), name="y")


@given(
    scores=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
        elements=st.floats(-9, 9, width=32),
    ),
    count=st.integers(1, 9),
)  # fmt: skip
def test_the_best_classes_come_best_first_and_equal_ones_in_order(scores: Any, count: int) -> None:
    names = ("ant", "bee")
    told = data.classes(scores, count=count, labels=names)

    rows = scores.reshape(1 if scores.ndim == 1 else len(scores), -1)
    count = min(count, rows.shape[1])
    assert told.shape == ((count,) if scores.ndim == 1 else (len(rows), count))
    for row, strings in zip(rows, told.reshape(len(rows), count), strict=True):
        parts = [string.decode().split(":") for string in strings]
        expected = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
        assert [int(part[1]) for part in parts] == expected
        assert [np.float32(part[0]) for part in parts] == [row[i] for i in expected]
        assert [part[2:] for part in parts] == [list(names[i : i + 1]) for i in expected]


def test_nan_is_no_best_class() -> None:
    told = data.classes(np.array([np.nan, 1, np.inf], dtype=np.float32), count=3)

    assert told.tolist() == [b"inf:2", b"1.0:1", b"nan:0"]
    largest = data.classes(np.array([0, 2**64 - 1], dtype=np.uint64), count=1)
    assert largest.tolist() == [b"18446744073709551615:1"]


def test_a_picture_is_not_classified_pixel_by_pixel() -> None:
    with pytest.raises(RequestError, match="70000 values a sample"):
        data.classes(np.zeros((1, 7, 10_000), dtype=np.float32), count=1)
