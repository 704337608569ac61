"""Inputs and outputs that are odd: a right artefact, or a refusal that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import Bundle
from edgekit.errors import BuildError
from edgekit.recipe import PassSpec, Recipe
from tests.converters.building import HERE, build_for, write_model
from tests.converters.graph_models import model, node, noise
from tests.converters.odd_models import classifier, graph, rows, tensor

DYNAMIC = Recipe(passes=(PassSpec(name="dynamic-int8"),))


@pytest.mark.parametrize("outputs", [("label", "scores"), ("scores", "label"), ("label",)])
def test_an_index_among_the_outputs_is_compared_as_an_answer(
    outputs: tuple[str, ...], tmp_path: Path
) -> None:
    path = write_model(tmp_path, classifier(*outputs))

    found = build_for(HERE, path, tmp_path, data=rows(tmp_path), recipe=DYNAMIC)

    (tried,) = (entry for entry in found.tried if entry.scheme == "dynamic-int8")
    assert tried.agreement is not None
    assert 0.8 < tried.agreement <= 1
    with Bundle.open(found.path or Path()) as opened:
        kinds = {spec.name: spec.datatype for spec in opened.manifest.model.outputs}
    assert kinds["label"] == "INT64"


def test_a_model_without_weights_ships_in_float(tmp_path: Path) -> None:
    source = model([node("Softmax", ["x"], ["y"])], {}, shape=("N", 16), output=("N", 16))

    found = build_for(
        HERE, write_model(tmp_path, source), tmp_path, data=rows(tmp_path), recipe=Recipe()
    )

    assert found.gate.reasons == ("float only: no pass finds anything to do on this model",)


X = tensor("x", ["N", 16])
ZIPPED = helper.make_value_info(
    "y",
    helper.make_sequence_type_proto(
        helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
    ),
)


def sequence() -> onnx.ModelProto:
    value = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    return graph([node("SplitToSequence", ["x"], ["y"], "split", axis=1)], [X], [value])


def zipped() -> onnx.ModelProto:
    zipping = node(
        *("ZipMap", ["x"], ["y"], "zip"), domain="ai.onnx.ml", classlabels_int64s=list(range(16))
    )
    return graph([zipping], [X], [ZIPPED], {}, ("ai.onnx.ml", 1))


def named_classes() -> onnx.ModelProto:
    encode = node(
        *("LabelEncoder", ["best"], ["y"], "names"),
        domain="ai.onnx.ml",
        keys_int64s=list(range(16)),
        values_strings=[f"class {i}" for i in range(16)],
    )
    best = node("ArgMax", ["x"], ["best"], axis=1, keepdims=0)
    texts = tensor("y", ["N"], TensorProto.STRING)
    return graph([best, encode], [X], [texts], {}, ("ai.onnx.ml", 2))


def constant() -> onnx.ModelProto:
    return graph([node("Identity", ["w"], ["y"])], [], [tensor("y", [4])], {"w": noise(4)})


def not_a_number() -> onnx.ModelProto:
    weights = np.full((16, 4), np.nan, np.float32)
    return graph([node("MatMul", ["x", "w"], ["y"])], [X], [tensor("y", ["N", 4])], {"w": weights})


def of_another_maker() -> onnx.ModelProto:
    unknown = node("Frobnicate", ["x"], ["y"], "strange", domain="acme.ops")
    return graph([unknown], [X], [tensor("y", ["N", 16])], {}, ("acme.ops", 1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (sequence, "output 'y' is a sequence of float tensor, made by SplitToSequence 'split'"),
        (zipped, "output 'y' is a sequence of map .* made by ZipMap 'zip'"),
        (named_classes, "output 'y' holds texts"),
        (constant, "the model has no inputs"),
        (not_a_number, "its output 'y' holds NaN"),
        (of_another_maker, "acme.ops:Frobnicate"),
    ],
)
def test_what_cannot_be_served_is_named_and_nothing_is_written(
    source: Callable[[], onnx.ModelProto], message: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path, source())

    with pytest.raises(BuildError, match=message):
        build_for(HERE, path, tmp_path, data=rows(tmp_path))

    assert not list(tmp_path.rglob("*.edge"))
