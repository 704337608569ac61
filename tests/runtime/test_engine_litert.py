"""LiteRT: a converted file that shows the model it was made from, and delegates."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.errors import EngineError, EngineNotInstalled
from edgekit_converters.toolchains.environments import python_of
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import run_all
from edgekit_runtime.engines.ports import quantised
from tests.converters.chains import needs
from tests.runtime.litert_contract import (
    DelegateBehaviour,
    DelegateContract,
    LiteRtContract,
    delegate,
)
from tests.runtime.tflite_models import relu

pytest.importorskip("ai_edge_litert")

SCALE, ZERO_POINT = 0.05, -20
LOW, HIGH = (-128 - ZERO_POINT) * SCALE, (127 - ZERO_POINT) * SCALE
OPTIONS: dict[str, Any] = {
    "inputs": [{"name": "image", "tensor": "x", "axes": [0, 2, 3, 1]}],
    "outputs": [{"name": "mask", "tensor": "y", "axes": [0, 2, 3, 1]}],
}

litert = ENGINES.get("litert")

__all__ = ["delegate"]


class TestLiteRt(LiteRtContract):
    engine = litert


class TestLiteRtThroughADelegate(DelegateContract):
    engine = litert


class TestDelegate(DelegateBehaviour):
    engine = litert


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """y = relu(x), int8 [1, 4, 5, 3] with channels last."""
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "relu.tflite"
    path.write_bytes(relu(shape=[1, 4, 5, 3], quantised=(SCALE, ZERO_POINT)))
    return path


def test_a_converted_file_shows_the_models_names_layout_and_floats(artifact: Path) -> None:
    session = litert.open(artifact, options=OPTIONS)

    (image,), (mask,) = session.inputs, session.outputs
    assert (image.name, image.datatype, image.shape) == ("image", "FP32", (1, 3, 4, 5))
    assert (mask.name, mask.datatype, mask.shape) == ("mask", "FP32", (1, 3, 4, 5))


@given(arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-9, 9, width=32)))
def test_answers_are_within_half_a_step_of_the_model(tmp: Path, images: np.ndarray) -> None:
    session = litert.open(tmp, options=OPTIONS)

    masks = run_all(session, {"image": images})["mask"]

    wanted = np.clip(np.maximum(images, 0), 0, HIGH)
    np.testing.assert_allclose(masks, wanted, atol=SCALE / 2 + 1e-5)
    assert masks.flags.c_contiguous


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ai_edge_litert")
    path = tmp_path_factory.mktemp("litert") / "relu.tflite"
    path.write_bytes(relu(shape=[1, 4, 5, 3], quantised=(SCALE, ZERO_POINT)))
    return path


def test_without_options_the_file_shows_its_own_interface(artifact: Path) -> None:
    (x,) = litert.open(artifact, options={}).inputs

    assert (x.name, x.datatype, x.shape) == ("x", "INT8", (1, 4, 5, 3))


def test_a_wrong_input_is_told_in_the_models_words(artifact: Path) -> None:
    session = litert.open(artifact, options=OPTIONS)

    with pytest.raises(EngineError, match=r"'image' must have shape \[1, 3, 4, 5\]"):
        session.run({"image": np.zeros((1, 4, 5, 3), np.float32)})
    with pytest.raises(EngineError, match="'image' must be FP32, it is INT8"):
        session.run({"image": np.zeros((1, 3, 4, 5), np.int8)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([{"name": "image", "tensor": "z"}], "place inputs z, the file has x"),
        ([{"name": "image", "tensor": "x", "axes": [0, 1]}], "axes .* do not fit"),
        ([{"name": "image", "tensor": "x", "axes": [0, 1, 1, 2]}], "axes .* do not fit"),
        ([{"name": "a", "tensor": "x"}, {"name": "b", "tensor": "x"}], "the file has x"),
        ([{"name": "image"}], "options of engine litert are not valid"),
    ],
)
def test_options_that_belong_to_another_file_are_refused(
    artifact: Path, inputs: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        litert.open(artifact, options={**OPTIONS, "inputs": inputs})


def test_a_delegate_that_is_not_on_this_machine_is_named(artifact: Path) -> None:
    options = {"delegates": [{"name": "libnowhere_delegate.so", "options": {"device": "usb"}}]}

    with pytest.raises(EngineError, match=r"libnowhere_delegate\.so cannot be loaded") as e:
        litert.open(artifact, options=options)
    assert "vendor" in (e.value.hint or "")


def test_a_library_that_is_no_delegate_is_refused(artifact: Path) -> None:
    with pytest.raises(EngineError, match=r"libc\.so\.6 cannot be loaded: it has no tflite_plugin"):
        litert.open(artifact, options={"delegates": [{"name": "libc.so.6"}]})


@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.floats(1e-6, 10))
def test_quantised_values_are_the_nearest_steps_or_the_ends(
    values: list[float], scale: float
) -> None:
    with np.errstate(over="ignore"):
        found = quantised(
            np.array(values, np.float32), scale=scale, zero_point=3, dtype=np.dtype(np.int8)
        )

    for value, step in zip(values, found, strict=True):
        if np.isnan(value):
            continue
        real = (int(step) - 3) * scale
        nearest = np.clip(value, (-128 - 3) * scale, (127 - 3) * scale)
        assert abs(real - nearest) <= scale / 2 * 1.001


BOARD_PROGRAM = """
import sys
sys.path += sys.argv[1:4]  # behind the board's own packages: edgekit's code, and what it needs
import json
from pathlib import Path
import numpy as np
from edgekit_runtime.engines import ENGINES

engine = ENGINES.get("tflite-runtime")
session = engine.open(Path(sys.argv[4]), options=json.loads(sys.argv[5]))
mask = session.run({"image": np.load(sys.argv[6])})["mask"]
np.save(sys.argv[7], mask)
print(engine.version())
"""


@needs("tflite-runtime")
def test_the_library_that_boards_of_older_vendors_have_runs_it_too(tmp_path: Path) -> None:
    model = tmp_path / "small.tflite"
    model.write_bytes(relu(shape=[1, 4, 5, 3], quantised=(SCALE, ZERO_POINT)))
    root = Path(__file__).parents[2]
    packages = sysconfig.get_paths()["platlib"]

    image = np.linspace(LOW, HIGH, 60, dtype=np.float32).reshape(1, 3, 4, 5)
    np.save(tmp_path / "image.npy", image)

    done = subprocess.run(
        [
            *(str(python_of("tflite-runtime")), "-c", BOARD_PROGRAM),
            *(str(root), str(root / "runtime"), packages, str(model), json.dumps(OPTIONS)),
            *(str(tmp_path / "image.npy"), str(tmp_path / "mask.npy")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2.14")
    here = litert.open(model, options=OPTIONS).run({"image": image})["mask"]
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), here)


def test_an_older_library_that_is_not_here_is_named_with_what_installs_it(tmp_path: Path) -> None:
    with pytest.raises(EngineNotInstalled, match="engine tflite-runtime is not on") as caught:
        ENGINES.get("tflite-runtime").open(tmp_path / "x.tflite", options={})
    assert caught.value.hint == "pip install tflite-runtime"
