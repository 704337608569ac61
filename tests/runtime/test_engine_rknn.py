"""RKNN: what happens around a library that no machine but a board has."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines.rknn import ENGINE, answers, parse

_TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 3, 8, 8]}
_OPTIONS: dict[str, Any] = {
    "inputs": [_TENSOR],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4]}],
}
_Y = (TensorSpec(name="y", datatype="FP32", shape=(1, 4)),)

without_library = pytest.mark.skipif(
    util.find_spec("rknnlite") is not None, reason="the library is on this machine"
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.rknn"
    path.write_bytes(b"RKNN" + bytes(60))
    return path


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


def test_without_its_tensors_a_file_is_not_opened(artifact: Path) -> None:
    with pytest.raises(EngineError, match="inputs"):
        ENGINE.open(artifact, options={})


@without_library
def test_without_the_library_the_hint_says_what_to_install(artifact: Path) -> None:
    with pytest.raises(EngineNotInstalled) as opening:
        ENGINE.open(artifact, options=_OPTIONS)
    with pytest.raises(EngineNotInstalled):
        ENGINE.version()
    assert "rknn-toolkit-lite2" in (opening.value.hint or "")


def test_a_file_of_another_kind_is_refused_before_the_library_sees_it(tmp_path: Path) -> None:
    other = tmp_path / "model.rknn"
    other.write_bytes(b"TFL3 and so on")

    with pytest.raises(EngineError, match=r"not an \.rknn file"):
        ENGINE.open(other, options=_OPTIONS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No such file"):
        ENGINE.open(tmp_path / "nowhere.rknn", options=_OPTIONS)


def test_answers_take_the_names_and_shapes_of_the_options() -> None:
    found = answers([np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)], _Y, of="m")

    assert found["y"].shape == (1, 4)


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
