"""RKNN: what happens around a library that no machine but a board has."""

from __future__ import annotations

from importlib import util
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EngineError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.rknn import ENGINE, answers, parse
from edgekit_runtime.engines.tensors import Layout, channels_last
from tests.runtime.engine_contract import AbsentContract

_TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 3, 8, 8]}
_OPTIONS: dict[str, Any] = {
    "inputs": [_TENSOR],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4]}],
}
_Y = (TensorSpec(name="y", datatype="FP32", shape=(1, 4)),)

without_library = pytest.mark.skipif(
    util.find_spec("rknnlite") is not None, reason="the library is on this machine"
)


@without_library
class TestRknn(AbsentContract):
    engine = ENGINE
    options = _OPTIONS
    magic = b"RKNN"
    package = "rknn-toolkit-lite2"


def test_options_have_defaults_for_all_but_the_tensors() -> None:
    options = parse(_OPTIONS)

    assert options.inputs[0].shape == (1, 3, 8, 8)
    assert (options.core_mask, options.layout) == ("auto", "nchw")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"core_mask": "7"}, "core_mask"),
        ({"layout": "chw"}, "layout"),
        ({"threads": 2}, "threads"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{**_TENSOR, "shape": [-1, 3, 8, 8]}]}, "fixed shapes only"),
        ({"inputs": [{**_TENSOR, "datatype": "BYTES"}]}, "BYTES"),
    ],
)
def test_a_wrong_option_is_named(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        parse({**_OPTIONS, **changed})


def test_answers_take_the_names_and_shapes_of_the_options() -> None:
    found = answers([np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)], _Y, of="m")

    assert found["y"].shape == (1, 4)


@given(st.sampled_from(["nchw", "nhwc"]), st.integers(1, 4), st.integers(1, 4))
def test_images_are_given_with_channels_last(layout: Layout, channels: int, size: int) -> None:
    values = np.arange(channels * size * (size + 1), dtype=np.float32)
    image = values.reshape(1, channels, size, size + 1)
    given_so = image if layout == "nchw" else np.moveaxis(image, 1, -1)

    turned = channels_last(given_so, layout=layout)

    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, np.moveaxis(image, 1, -1))


def test_what_is_no_image_is_given_as_it_is() -> None:
    for shape in ((), (4,), (1, 3), (1, 2, 3)):
        assert channels_last(np.zeros(shape), layout="nchw").shape == shape


def test_integers_come_back_as_integers() -> None:
    specs = (TensorSpec(name="class", datatype="INT64", shape=(1,)),)

    assert answers([np.array([3.0], np.float32)], specs, of="m")["class"].dtype == np.int64


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "library failed"),
        ([], "0 outputs came"),
        ([np.zeros((1, 5), np.float32)], r"output 'y' has shape \[1, 5\]"),
    ],
)
def test_an_answer_that_does_not_fit_is_an_error(found: Any, told: str) -> None:
    with pytest.raises(EngineError, match=told):
        answers(found, _Y, of="m")
