"""Shapes and interfaces in normal form: what is declared, fixed, inferred or observed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekit.errors import ModelError
from edgekit.manifest import TensorSpec
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.normalise import (
    fixed,
    observed_shapes,
    shapes_from,
    unknown_shapes,
    with_shapes,
)
from tests.converters.graph_models import answer, model, node, noise, normal_form


def test_a_wrong_declared_shape_is_overwritten_and_forgotten() -> None:
    source = model(
        [node("Conv", ["x", "w"], ["a"], "conv"), node("Relu", ["a"], ["y"])],
        {"w": noise(4, 3, 3, 3)},
        shape=(10, 3, 32, 32),
        output=(10, 4, 30, 30),
    )
    stale = helper.make_tensor_value_info("a", TensorProto.FLOAT, [10, 4, 30, 30])
    source.graph.value_info.append(stale)

    normal = normal_form(source, shapes={"x": (1, 3, 64, 48)})

    assert normal.outputs[0].shape == (1, 4, 62, 46)
    assert answer(normal.model, x=noise(1, 3, 64, 48)).shape == (1, 4, 62, 46)


def test_a_reshape_that_was_made_for_the_old_shape_is_named() -> None:
    nodes = [node("Reshape", ["x", "target"], ["y"], "head/flatten")]
    source = model(nodes, {"target": np.array([1, 3072])}, shape=(1, 3, 32, 32))

    with pytest.raises(ModelError, match=r"--input x=1x3x64x64: Reshape 'head/flatten'"):
        normal_form(source, shapes={"x": (1, 3, 64, 64)})


def test_a_shape_is_proposed_where_the_samples_contradict_the_model() -> None:
    inputs = (
        TensorSpec(name="wrong", datatype="FP32", shape=(10, 3, 32, 32)),
        TensorSpec(name="right", datatype="FP32", shape=(-1, 16)),
        TensorSpec(name="whole", datatype="FP32", shape=(2, 1, 128)),
    )
    arrays = {"wrong": noise(6, 3, 64, 64), "right": noise(6, 16), "whole": noise(6, 2, 1, 128)}

    assert shapes_from(arrays, inputs) == {"wrong": (1, 3, 64, 64)}


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 4), st.data())
def test_a_proposed_shape_always_fits_one_sample(
    declared: list[int], count: int, data: st.DataObject
) -> None:
    sizes = [data.draw(st.integers(1, 9)) for _ in declared[1:]]
    spec = TensorSpec(name="x", datatype="FP32", shape=tuple(declared))

    proposed = shapes_from({"x": np.zeros((count, *sizes), np.float32)}, (spec,))

    assert proposed.get("x", spec.shape) == (1, *sizes)


def test_shapes_that_cannot_be_inferred_are_observed(tmp_path: Path) -> None:
    nodes = [
        node("QuickGelu", ["x"], ["a"], domain="com.microsoft"),
        node("NonZero", ["a"], ["where"]),
        node("Cast", ["where"], ["y"], to=TensorProto.FLOAT),
    ]
    source = model(nodes, {})
    source.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    normal = normal_form(source).model
    assert "where" in unknown_shapes(normal)

    seen = observed_shapes(normal, {"x": np.ones((1, 3, 8, 8), np.float32)}, scratch=tmp_path)

    assert seen == {"a": (1, 3, 8, 8), "where": (4, 192), "y": (4, 192)}
    assert "where" not in unknown_shapes(with_shapes(normal, seen))


# The interface.


def test_a_zip_map_is_refused_with_what_to_do() -> None:
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    source = model(
        [
            node("Flatten", ["x"], ["flat"]),
            node("ZipMap", ["flat"], ["y"], "zip", domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
        ],
        {},
        shape=(1, 2),
    )
    source.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    del source.graph.output[:]
    source.graph.output.append(helper.make_value_info("y", helper.make_sequence_type_proto(kind)))

    with pytest.raises(ModelError, match="sequence of map of int64 to float tensor") as refused:
        fixed(source, {})

    assert "made by ZipMap 'zip'" in refused.value.message
    assert "zipmap" in (refused.value.hint or "")


def test_a_real_model_answers_the_same_in_normal_form(tmp_path: Path) -> None:
    path = tmp_path / "lite0.onnx"
    write_lite0(path)
    source = onnx.load(path)

    normal = normal_form(source, shapes={"input": (1, 3, 224, 224)})

    assert normal.notes == ()
    assert unknown_shapes(normal.model) == ()
    photo = noise(1, 3, 224, 224)
    wanted = answer(source, input=photo)
    np.testing.assert_allclose(answer(normal.model, input=photo), wanted, atol=1e-4)


def test_a_stale_shape_that_was_recorded_is_not_believed() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Shape", ["a"], ["shape"]),
        node("Cast", ["shape"], ["y"], to=TensorProto.FLOAT),
    ]
    source = model(nodes, {}, output=(2,))
    stale = helper.make_tensor_value_info("a", TensorProto.FLOAT, [10, 3])
    source.graph.value_info.append(stale)

    normal = normal_form(source)

    assert normal.outputs[0].shape == (4,)
    assert answer(normal.model, x=noise(1, 3, 8, 8)).tolist() == [1, 3, 8, 8]


def test_a_recorded_shape_counts_where_none_can_be_inferred() -> None:
    nodes = [
        node("Warp", ["x"], ["a"], domain="org.example"),
        node("Relu", ["a"], ["y"]),
    ]
    source = model(nodes, {})
    source.opset_import.append(helper.make_opsetid("org.example", 1))
    recorded = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 6])
    source.graph.value_info.append(recorded)

    normal = normal_form(source, fold=False)

    assert normal.outputs[0].shape == (1, 6)
