"""A changed batch is proven by running it, or refused with the operator that fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from edgekit.errors import BuildError, RecipeError
from edgekit.recipe import Option
from edgekit_converters.calibrate import Calibration
from edgekit_converters.normalise import serialise, spec_of
from edgekit_converters.passes.batch import PASS, with_batch
from edgekit_converters.passes.batch_axis import reshaped_position
from tests.converters.passes_models import (
    engine,
    graph_of,
    mlp,
    noise,
    run,
    small_convnet,
)


def node(operator: str, inputs: str, result: str, **attributes: Any) -> onnx.NodeProto:
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, result.split(), f"{operator}_{result}", **attributes)


def ints(*values: int) -> NDArray[Any]:
    return np.asarray(values, np.int64)


def attention() -> onnx.ModelProto:
    """Two heads over 6 places and a class token, with every shape written down for one sample."""
    nodes = [
        node("Concat", "token x", "joined", axis=1),
        node("MatMul", "joined w", "m"),
        node("Reshape", "m split", "parted"),
        node("Transpose", "parted", "heads", perm=[0, 2, 1, 3]),
        node("Reshape", "heads merged", "q"),
        node("Transpose", "q", "k", perm=[0, 2, 1]),
        node("MatMul", "q k", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("MatMul", "p q", "o"),
        node("Reshape", "o unmerged", "u"),
        node("Transpose", "u", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t whole", "y"),
    ]
    constants: dict[str, NDArray[Any]] = {
        "token": noise(1, 1, 1, 8),
        "w": noise(2, 8, 8),
        "split": ints(1, 7, 2, 4),
        "merged": ints(2, 7, 4),
        "unmerged": ints(1, 2, 7, 4),
        "whole": ints(1, 7, 8),
    }
    return graph_of(nodes, inputs={"x": [1, 6, 8]}, outputs={"y": [1, 7, 8]}, constants=constants)


def recurrent() -> onnx.ModelProto:
    """x [1, 5, 4], turned to time first, through an LSTM with a first state for one sample."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("LSTM", "t w r - - h c", "y1 h1", hidden_size=3),
        node("Transpose", "y1", "y2", perm=[2, 0, 1, 3]),
        node("Reshape", "y2 flat", "y"),
    ]
    constants: dict[str, NDArray[Any]] = {
        "w": noise(1, 1, 12, 4),
        "r": noise(2, 1, 12, 3),
        "h": noise(3, 1, 1, 3),
        "c": noise(4, 1, 1, 3),
        "flat": ints(1, 15),
    }
    return graph_of(nodes, inputs={"x": [1, 5, 4]}, outputs={"y": [1, 15]}, constants=constants)


def pictures() -> onnx.ModelProto:
    """Enlarged to a size that is written down, cut, and summed to one row."""
    nodes = [
        node("Resize", "x - - sizes", "large", mode="nearest"),
        node("Slice", "large start end axes", "cut"),
        node("Mul", "cut cut", "squared"),
        node("ReduceMean", "squared", "mean", axes=[2, 3], keepdims=0),
        node("Reshape", "mean row", "y"),
    ]
    constants: dict[str, NDArray[Any]] = {
        "sizes": ints(1, 3, 8, 8),
        "start": ints(0, 1),
        "end": ints(1, 7),
        "axes": ints(0, 2),
        "row": ints(1, 1, 3),
    }
    return graph_of(
        nodes, inputs={"x": [1, 3, 4, 4]}, outputs={"y": [1, 1, 3]}, constants=constants
    )


FIXED = {
    "convnet": small_convnet(),
    "mlp": mlp(batch=1),
    "attention": attention(),
    "recurrent": recurrent(),
    "pictures": pictures(),
}


def one_by_one(model: onnx.ModelProto, x: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([run(model, x=x[i : i + 1])[0] for i in range(len(x))])


def shapes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    return [spec_of(value).shape for value in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize("name", FIXED)
def test_a_model_for_one_sample_takes_any_number(name: str) -> None:
    model = FIXED[name]
    x = noise(7, 5, *shapes(model)[0][1:])

    freed = with_batch(model, "dynamic")

    onnx.checker.check_model(freed, full_check=True)
    assert [shape[0] for shape in shapes(freed)] == [-1, -1]
    np.testing.assert_allclose(run(freed, x=x)[0], one_by_one(model, x), atol=1e-4)


@pytest.mark.parametrize("name", FIXED)
def test_a_number_fixes_the_batch(name: str) -> None:
    model = FIXED[name]
    x = noise(7, 4, *shapes(model)[0][1:])

    fixed = with_batch(model, 4)

    assert [shape[0] for shape in shapes(fixed)] == [4, 4]
    np.testing.assert_allclose(run(fixed, x=x)[0], one_by_one(model, x), atol=1e-4)


def test_a_free_batch_can_be_fixed() -> None:
    assert shapes(with_batch(mlp(), 1)) == [(1, 64), (1, 10)]


def test_what_mixes_samples_is_refused_with_its_operator() -> None:
    model = graph_of(
        [node("Exp", "x", "e"), node("Softmax", "e", "s", axis=0), node("Mul", "s x", "y")],
        inputs={"x": [1, 4]},
        outputs={"y": [1, 4]},
    )

    with pytest.raises(BuildError, match="mixes samples at Softmax 'Softmax_s'"):
        with_batch(model, "dynamic")


def test_what_drops_the_batch_is_refused_with_its_operator() -> None:
    squeezed = graph_of(
        [node("Squeeze", "x first", "s"), node("MatMul", "s w", "y")],
        inputs={"x": [1, 4, 4]},
        outputs={"y": [4, 2]},
        constants={"first": ints(0), "w": noise(1, 4, 2)},
    )
    picked = graph_of(
        [node("Gather", "x zero", "p", axis=0), node("MatMul", "p w", "y")],
        inputs={"x": [1, 4, 4]},
        outputs={"y": [4, 2]},
        constants={"zero": np.asarray(0), "w": noise(1, 4, 2)},
    )

    with pytest.raises(BuildError, match="Squeeze 'Squeeze_s'"):
        with_batch(squeezed, "dynamic")
    with pytest.raises(BuildError, match="Gather 'Gather_p'"):
        with_batch(picked, "dynamic")


def test_an_output_with_the_batch_elsewhere_is_refused() -> None:
    model = graph_of(
        [node("Transpose", "x", "y", perm=[1, 0])], inputs={"x": [1, 4]}, outputs={"y": [4, 1]}
    )

    with pytest.raises(BuildError, match="output 'y' has the batch in its axis 1"):
        with_batch(model, "dynamic")


def test_an_output_without_axes_is_refused() -> None:
    model = graph_of(
        [node("ReduceSum", "x", "y", keepdims=0)], inputs={"x": [1, 4]}, outputs={"y": []}
    )

    with pytest.raises(BuildError, match="output 'y' has no axis"):
        with_batch(model, "dynamic")


def test_an_input_whose_first_axis_counts_something_else_is_refused() -> None:
    model = graph_of(
        [node("Add", "x state", "y")],
        inputs={"x": [1, 4], "state": [2, 1, 4]},
        outputs={"y": [2, 1, 4]},
    )

    with pytest.raises(BuildError, match="input 'state' is"):
        with_batch(model, "dynamic")


def test_it_is_tried_on_samples_where_there_are_some(tmp_path: Path) -> None:
    # Noise never reaches the branch in which samples differ from their neighbours.
    nodes = [
        node("ReduceMax", "x", "top", axes=[0], keepdims=1),
        node("Max", "top limit", "above"),
        node("Sub", "above limit", "extra"),
        node("Add", "x extra", "y"),
    ]
    model = graph_of(
        nodes,
        inputs={"x": [1, 4]},
        outputs={"y": [1, 4]},
        constants={"limit": np.asarray(100, np.float32)},
    )
    calibration = Calibration(
        inputs=(spec_of(model.graph.input[0]),),
        arrays={"x": noise(1, 4, 4) * np.float32(500)},
        scratch=tmp_path,
    )

    assert shapes(with_batch(model, "dynamic"))[0] == (-1, 4)
    with pytest.raises(BuildError, match="mixes samples at ReduceMax 'ReduceMax_top'"):
        PASS.apply(model, PASS.step({"size": "dynamic"}), calibration=calibration)


def test_axes_that_stay_open_need_samples(tmp_path: Path) -> None:
    model = graph_of(
        [node("ReduceMean", "x", "y", axes=[1], keepdims=0)],
        inputs={"x": [1, "T", 4]},
        outputs={"y": [1, 4]},
    )
    calibration = Calibration(
        inputs=(spec_of(model.graph.input[0]),), arrays={"x": noise(1, 5, 9, 4)}, scratch=tmp_path
    )
    step = PASS.step({"size": "dynamic"})

    with pytest.raises(BuildError, match="cannot be tried without samples"):
        with_batch(model, "dynamic")
    assert shapes(PASS.apply(model, step, calibration=calibration))[0] == (-1, -1, 4)


def test_only_a_recipe_that_names_a_size_gets_an_offer() -> None:
    def offered(model: onnx.ModelProto, given: dict[str, Option]) -> list[str]:
        steps = PASS.offers(given, model=model, engine=engine(), style="onnxruntime")
        return [step.label for step in steps]

    assert offered(small_convnet(), {}) == []
    assert offered(small_convnet(), {"size": "dynamic"}) == ["batch/dynamic"]
    assert offered(small_convnet(), {"size": "4"}) == ["batch/4"]
    assert offered(small_convnet(batch="N"), {"size": "dynamic"}) == []


def test_a_batch_that_the_model_has_already_is_refused() -> None:
    with pytest.raises(BuildError, match="already"):
        PASS.apply(mlp(), PASS.step({"size": "dynamic"}), calibration=None)


@pytest.mark.parametrize("size", ["many", 0, "-1", 5000, "", 2.5])
def test_a_size_that_is_none_is_refused(size: Option) -> None:
    with pytest.raises(RecipeError, match="batch"):
        PASS.step({"size": size})


def test_the_model_given_is_not_changed_and_the_same_bytes_come_out() -> None:
    model = attention()
    before = serialise(model)

    first, second = with_batch(model, "dynamic"), with_batch(model, "dynamic")

    assert serialise(model) == before
    assert serialise(first) == serialise(second)


@given(
    before=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_reshape_with_the_batch_in_place_keeps_samples_apart(
    before: Sequence[int], data: st.DataObject
) -> None:
    """Values of a batch, reshaped with -1 at the position, are those of each sample reshaped."""
    position = data.draw(st.integers(0, len(before)))
    shape = (*before[:position], 1, *before[position:])
    rest = int(np.prod(shape))
    after = []
    while rest > 1:
        size = data.draw(st.sampled_from([s for s in (2, 3) if rest % s == 0]))
        after.append(size)
        rest //= size
    after.insert(data.draw(st.integers(0, len(after))), 1)
    place = reshaped_position(shape, position, tuple(after))
    if place is None:
        return
    batch = np.arange(3 * np.prod(shape)).reshape(
        *(3 if i == position else size for i, size in enumerate(shape))
    )

    together = batch.reshape([-1 if i == place else size for i, size in enumerate(after)])

    for i, part in enumerate(np.split(batch, 3, axis=position)):
        mine = np.split(together, 3, axis=place)[i]
        np.testing.assert_array_equal(mine, part.reshape(after))
