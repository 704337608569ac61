"""Normal form keeps what a model means and fits what an engine takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import BuildError, ModelError, UsageError
from edgekit_converters.normalise import Normalised, normalise, opset_of, serialise, spec_of
from tests.converters.building import convnet, images


def normal_form(
    source: onnx.ModelProto, shapes: dict[str, tuple[int, ...]] | None = None, *, fold: bool = True
) -> Normalised:
    """Normal form for an engine whose caps do not matter here."""
    return normalise(source, shapes=shapes or {}, max_opset=21, max_ir=10, fold=fold)


def scores(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(serialise(model), providers=["CPUExecutionProvider"])
    pictures, _ = images()
    answers: NDArray[np.float32] = session.run(None, {"image": pictures[:8]})[0]
    return answers


@pytest.mark.parametrize("opset", [11, 12, 13, 16, 17, 20, 21])
def test_any_opset_ends_within_the_caps_and_answers_the_same(opset: int) -> None:
    source = convnet(opset=opset, ir=9)

    normal = normalise(source, shapes={}, max_opset=20, max_ir=9)

    assert 17 <= opset_of(normal.model) <= 20
    assert normal.model.ir_version <= 9
    np.testing.assert_allclose(scores(normal.model), scores(source), atol=1e-5)


def test_the_source_is_not_changed() -> None:
    source = convnet(opset=12)
    before = serialise(source)

    normal_form(source, {"image": (1, 1, 8, 8)})

    assert serialise(source) == before


def test_a_dynamic_batch_stays_the_callers_choice() -> None:
    normal = normal_form(convnet())

    assert normal.inputs[0].shape == (-1, 1, 8, 8)
    assert normal.outputs[0].shape == (-1, 10)


def test_a_shape_is_fixed_where_the_caller_asks() -> None:
    normal = normal_form(convnet(), {"image": (2, 1, 8, 8)})

    assert normal.inputs[0].shape == (2, 1, 8, 8)
    assert normal.outputs[0].shape == (2, 10)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"picture": (1, 1, 8, 8)}, "no input 'picture'"),
        ({"image": (1, 64)}, "has 4 axes, 2 sizes were given"),
    ],
)
def test_a_shape_that_fits_no_input_is_a_usage_error(
    shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        normal_form(convnet(), shapes)


def test_initialisers_are_no_inputs() -> None:
    source = convnet()
    for tensor in source.graph.initializer:
        source.graph.input.append(
            helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims))
        )

    normal = normal_form(source)

    assert [spec.name for spec in normal.inputs] == ["image"]


def test_every_node_has_a_name_of_its_own() -> None:
    source = convnet()
    for node in source.graph.node:
        node.name = "same"

    normal = normal_form(source)

    names = [node.name for node in normal.model.graph.node]
    assert len(set(names)) == len(names)


def test_constants_are_folded_unless_names_of_weights_must_live_on() -> None:
    source = convnet()
    source.graph.node.insert(0, helper.make_node("Neg", ["negative"], ["first"], "fold-me"))
    for tensor in source.graph.initializer:
        if tensor.name == "first":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "negative"))

    folded = normal_form(source).model
    kept = normal_form(source, fold=False).model

    assert "Neg" not in {node.op_type for node in folded.graph.node}
    assert {"negative", "second", "head"} <= {tensor.name for tensor in kept.graph.initializer}
    np.testing.assert_allclose(scores(folded), scores(convnet()), atol=1e-5)


def test_metadata_of_the_source_is_kept() -> None:
    source = convnet()
    entry = source.metadata_props.add()
    entry.key, entry.value = "author", "someone"

    normal = normal_form(source)

    assert [(e.key, e.value) for e in normal.model.metadata_props] == [("author", "someone")]


def test_an_opset_that_needs_a_newer_ir_than_the_engine_loads_is_refused() -> None:
    with pytest.raises(BuildError, match="needs ONNX IR"):
        normalise(convnet(opset=21, ir=10), shapes={}, max_opset=21, max_ir=7)


def test_normal_form_is_reproducible() -> None:
    first, second = (normal_form(convnet(opset=12)) for _ in range(2))

    assert serialise(first.model) == serialise(second.model)


def test_an_input_that_is_no_tensor_is_refused() -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))

    with pytest.raises(ModelError, match="not a tensor"):
        spec_of(helper.make_value_info("list", kind))
