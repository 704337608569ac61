"""Hailo: what happens around a library and a chip that no machine here has."""

from __future__ import annotations

from importlib import util
from typing import Any

import numpy as np
import pytest

from edgekit.errors import EngineError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.hailo import ENGINE, parse, to_model
from tests.runtime.engine_contract import AbsentContract

_TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}
_OPTIONS: dict[str, Any] = {
    "inputs": [_TENSOR],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}
_IMAGE = TensorSpec(name="mask", datatype="FP32", shape=(-1, 2, 3, 4))

without_library = pytest.mark.skipif(
    util.find_spec("hailo_platform") is not None, reason="the library is on this machine"
)


@without_library
class TestHailo(AbsentContract):
    engine = ENGINE
    options = _OPTIONS
    magic = b"\x01HEF"
    package = "hailo-all"


def test_options_have_defaults_for_all_but_the_tensors() -> None:
    options = parse(_OPTIONS)

    assert options.inputs[0].shape == (-1, 3, 8, 8)
    assert (options.layout, options.timeout_s) == ("nchw", 10)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"layout": "chw"}, "layout"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"outputs": []}, "outputs"),
        ({"inputs": [{**_TENSOR, "shape": [1, 3, 8, 8]}]}, "axis 0, which is -1"),
        ({"inputs": [{**_TENSOR, "shape": [-1, 3, -1, 8]}]}, "fixed shapes"),
        ({"inputs": [{**_TENSOR, "datatype": "INT64"}]}, "INT64"),
    ],
)
def test_a_wrong_option_is_named(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        parse({**_OPTIONS, **changed})


def test_answers_come_back_with_channels_first() -> None:
    made = np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2)

    found = to_model(made, _IMAGE, layout="nchw", of="m")

    np.testing.assert_array_equal(found, np.moveaxis(made, -1, 1))
    assert found.flags.c_contiguous


def test_answers_of_one_row_lose_the_axes_that_the_chip_adds() -> None:
    scores = TensorSpec(name="y", datatype="FP32", shape=(-1, 5))

    assert to_model(np.zeros((2, 1, 1, 5)), scores, layout="nchw", of="m").shape == (2, 5)


def test_an_answer_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(EngineError, match=r"output 'mask' has shape \[2, 3, 4, 9\]"):
        to_model(np.zeros((2, 3, 4, 9)), _IMAGE, layout="nchw", of="m")
