"""What a request may say of its tensors, as plain values: checked, read, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving import offer, v2
from edgekit_runtime.serving.form import Form, Stretch
from edgekit_runtime.serving.offer import Offer
from edgekit_runtime.serving.request import Request
from tests import bundles

SAMPLES = bundles.samples(1)
X = TensorSpec(name="x", datatype="FP32", shape=(-1, bundles.FEATURES))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, bundles.CLASSES))
TINY = v2.offered([X], [Y])
A = TensorSpec(name="a", datatype="FP32", shape=(-1, 4))
B = TensorSpec(name="b", datatype="INT32", shape=(-1, 2))
PIXELS = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 3, 8, 8))
TAKES = (
    TensorSpec(name="pixels", datatype="BYTES", shape=(-1,)),
    TensorSpec(name="pixels", datatype="UINT8", shape=(-1, -1, -1, 3)),
    TensorSpec(name="pixels", datatype="UINT8", shape=(-1, -1, 3)),
)
GIVES = (
    TensorSpec(name="labels", datatype="BYTES", shape=(-1, 2)),
    TensorSpec(name="best", datatype="FP32", shape=(-1, 2)),
)
HALF = TensorSpec(name="half", datatype="FP16", shape=(-1, 4))
PICTURES = Offer([PIXELS], [Y], "pixels", TAKES, GIVES, ("ant", "bee", "cat", "dog"))


def described(spec: TensorSpec, shape: tuple[int, ...], **parameters: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, "parameters": parameters}


def asked(offered: Offer, *inputs: dict[str, Any], **fields: Any) -> Form:
    """The form of a request, its outputs in binary."""
    body = {"inputs": inputs, "parameters": {"binary_data_output": True}, **fields}
    return offer.read(json.dumps(body).encode(), offered)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    tensor=st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | json_values,
            "datatype": st.sampled_from(["FP32", "FP99", "BYTES"]) | json_values,
            "shape": st.lists(st.integers(-3, 2**40), max_size=4) | json_values,
            "data": st.lists(st.floats(), max_size=16) | json_values,
            "parameters": st.fixed_dictionaries(
                {}, optional={"binary_data_size": st.integers(-5, 2**66) | json_values}
            ),
        },
    ),
    extra=st.dictionaries(st.sampled_from(["id", "outputs", "parameters"]), json_values),
)
def test_any_json_is_a_form_or_a_clear_error(tensor: Any, extra: dict[str, Any]) -> None:
    raw = json.dumps({**extra, "inputs": [tensor]}).encode()
    try:
        form = offer.read(raw, TINY)
    except RequestError:
        return
    assert form.rows >= 1
    for slot in form.slots:
        assert slot.size_bytes == form.rows * bundles.FEATURES * 4


@given(pad=st.integers(0, 40), size=st.integers(0, 200))
def test_tensors_lie_where_their_datatype_may(pad: int, size: int) -> None:
    raw = msgspec.json.encode(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16],
                     "parameters": {"binary_data_size": 64}}]}
    )  # fmt: skip
    form = offer.read(raw, TINY)
    if size != 64:
        with pytest.raises(RequestError, match=f"{size} bytes follow"):
            v2.read_arrays(form, bytes(pad + size), offset=pad, size_bytes=size)
        return
    array = v2.read_arrays(form, bytes(pad) + SAMPLES[0].tobytes(), offset=pad, size_bytes=64)["x"]

    assert array.flags.aligned
    np.testing.assert_array_equal(array[0], SAMPLES[0])


@given(rows=st.tuples(st.integers(1, 5), st.integers(1, 5)), swapped=st.booleans())
def test_binary_inputs_follow_in_the_order_of_the_json(
    rows: tuple[int, int], swapped: bool
) -> None:
    arrays = {
        "a": np.arange(rows[0] * 4, dtype=np.float32).reshape(-1, 4),
        "b": np.arange(rows[1] * 2, dtype=np.int32).reshape(-1, 2),
    }
    specs = [B, A] if swapped else [A, B]
    form = asked(
        v2.offered([A, B], [Y]),
        *(described(s, arrays[s.name].shape, binary_data_size=arrays[s.name].nbytes)
          for s in specs),
    )  # fmt: skip
    raw = b"".join(arrays[spec.name].tobytes() for spec in specs)

    read = v2.read_arrays(form, raw, offset=0, size_bytes=len(raw))

    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    assert form.rows == (rows[0] if rows[0] == rows[1] else 0)
    assert form.shapes == (("a", (4,)), ("b", (2,)))


@given(
    shape=st.tuples(st.integers(-1, 3), st.sampled_from([bundles.FEATURES, 4, -1])).map(list)
    | st.lists(st.integers(-2, 4) | st.integers(-(2**40), 2**40), max_size=4),
    datatype=st.just("FP32") | st.sampled_from([*DTYPES, "FP8", ""]),
    size=st.sampled_from([64, 128, 192]) | st.integers(-1, 200),
)
def test_an_input_fits_its_spec_or_is_named(shape: list[int], datatype: str, size: int) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": shape,
              "parameters": {"binary_data_size": size}}  # fmt: skip
    fits = len(shape) == 2 and shape[0] >= 1 and shape[1] == bundles.FEATURES
    if datatype == "FP32" and fits and size == shape[0] * 64:
        assert asked(TINY, tensor).slots[0].shape == tuple(shape)
        return
    with pytest.raises(RequestError, match="input 'x'"):
        asked(TINY, tensor)


@pytest.mark.parametrize(
    ("tensor", "rows"),
    [
        (described(TAKES[0], (3,), binary_data_size=30), 3),
        (described(TAKES[1], (2, 5, 4, 3), binary_data_size=120), 2),
        (described(TAKES[2], (5, 4, 3), binary_data_size=60), 1),
    ],
)
def test_a_picture_input_takes_files_and_pixels(tensor: dict[str, Any], rows: int) -> None:
    form = asked(PICTURES, tensor)

    assert (form.pictures, form.rows, form.finishes) == ("pixels", rows, True)
    assert [wanted.name for wanted in form.outputs] == ["labels", "best"]
    assert [wanted.datatype for wanted in form.outputs] == ["BYTES", "FP32"]


def test_a_picture_input_takes_what_the_model_takes() -> None:
    raw = described(PIXELS, (2, 3, 8, 8), binary_data_size=2 * 768)
    form = asked(PICTURES, raw)
    assert (form.pictures, form.rows, form.finishes) == (None, 2, False)
    assert [wanted.name for wanted in form.outputs] == ["y"]

    form = asked(PICTURES, raw, outputs=[{"name": "y"}, {"name": "best"}])
    assert (form.pictures, form.finishes) == (None, True)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (described(TAKES[0], (1, 1), binary_data_size=30), r"must have shape \[-1\]"),
        (described(TAKES[1], (5, 4, 4), binary_data_size=80),
         r"shape \[-1, -1, -1, 3\] or \[-1, -1, 3\]"),
        (described(A, (5, 4), binary_data_size=80) | {"name": "pixels", "datatype": "INT8"},
         "must be FP32 or BYTES or UINT8"),
        (described(TAKES[0], (3,), binary_data_size=11), "3 strings take at least 12"),
    ],
)  # fmt: skip
def test_a_picture_of_another_form_is_refused(tensor: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        asked(PICTURES, tensor)


def test_places_in_shared_memory_are_read_and_not_looked_at() -> None:
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 64}
    out = {"shared_memory_region": "s", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
    prepared = v2.prepare(
        json.dumps({"inputs": [described(X, (1, 16), **place)],
                    "outputs": [{"name": "y", "parameters": out}]}).encode(),
        inputs=[X], outputs=[Y],
    )  # fmt: skip

    assert prepared.is_plain
    assert prepared.uses_regions
    assert prepared.form.shared[0].place == Stretch("r", 0, 64)
    assert prepared.form.outputs[0].place == Stretch("s", 4, 8)
    assert (prepared.form.binary_bytes, prepared.form.shared_bytes) == (0, 64)


def test_half_precision_is_binary_only() -> None:
    tensor = {"name": "half", "datatype": "FP16", "shape": [1, 4], "data": [1, 2, 3, 4]}
    half = v2.offered([HALF], [HALF])

    with pytest.raises(RequestError, match="input 'half' is FP16"):
        asked(half, tensor)
    binary = described(HALF, (1, 4), binary_data_size=8)
    with pytest.raises(RequestError, match=r"output 'half' is FP16.*binary_data_output"):
        asked(half, binary, parameters={})
    with pytest.raises(RequestError, match=r"output 'half' is FP16.*binary_data"):
        asked(half, binary, outputs=[{"name": "half", "parameters": {"binary_data": False}}])
    assert asked(half, binary).outputs[0].binary


def test_values_that_came_typed_are_checked_like_json() -> None:
    request = msgspec.convert({"inputs": [described(B, (1, 2))]}, Request)
    offered = v2.offered([B], [Y])

    form = offer.check(request, offered, typed={"b": np.array([3, 4], dtype=np.int64)})
    np.testing.assert_array_equal(form.values["b"], [[3, 4]])
    assert form.values["b"].dtype == np.int32
    for wrong, message in (([1, 2, 3], "3 values"), ([2**40, 1], "not INT32")):
        with pytest.raises(RequestError, match=message):
            offer.check(request, offered, typed={"b": np.array(wrong)})
