"""Channels that hang together shrink together, and what is not understood is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from edgekit_converters.passes.pruning.groups import Group, find
from edgekit_converters.passes.pruning.layers import layer_of, store, stored
from edgekit_converters.passes.pruning.rules import trace
from edgekit_converters.passes.pruning.surgery import without
from tests.converters.passes_models import run
from tests.converters.pruning_models import NETS, Net, pictures, with_operator

INPUT = pictures(3)

# By net: how many channels each group can lose.
REMOVABLE = {
    "chain": [16, 12],
    "depthwise": [16, 8],
    "residual": [16, 16],
    "squeeze": [16, 8, 8],
    "concatenated": [8, 12, 16, 8],
    "flattened": [16, 24],
    "normalised": [16],
}


def groups(model: onnx.ModelProto) -> tuple[Group, ...]:
    return find(trace(model), model)


def with_unread(model: onnx.ModelProto, removed: list[tuple[Group, list[int]]]) -> onnx.ModelProto:
    """The same net in which nothing depends on some units: their readers' weights are zero."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for group, units in removed:
        for reader in group.readers:
            layer = layer_of(model, reader.consumer)
            matrix, _ = stored(copy, layer)
            matrix[:, layer.features_of(reader.positions[units]).reshape(-1)] = 0
            store(copy, layer, matrix, None)
    return copy


@pytest.mark.parametrize("name", NETS)
def test_every_layer_whose_channels_only_layers_read_is_found(name: str) -> None:
    assert [len(group.units) for group in groups(NETS[name]())] == REMOVABLE[name]


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_removing_channels_that_nothing_depends_on_changes_no_answer(
    name: str, data: st.DataObject
) -> None:
    model = NETS[name]()
    removed = []
    for group in groups(model):
        unit = st.integers(0, len(group.units) - 1)
        most = len(group.units) - 1
        removed.append((group, data.draw(st.lists(unit, unique=True, max_size=most))))
    unread = with_unread(model, removed)
    gone = [int(group.units[i]) for group, units in removed for i in units]

    smaller = without(unread, trace(unread), gone)

    onnx.checker.check_model(smaller, full_check=True)
    np.testing.assert_allclose(
        run(smaller, x=INPUT)[0], run(unread, x=INPUT)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", NETS)
def test_removing_a_channel_makes_every_tensor_of_it_smaller(name: str) -> None:
    model = NETS[name]()
    for group in groups(model):
        smaller = without(model, trace(model), group.units[:1].tolist())
        sizes = [sum(t.ByteSize() for t in m.graph.initializer) for m in (model, smaller)]

        assert sizes[1] < sizes[0]
        inferred = shape_inference.infer_shapes(smaller, strict_mode=True)
        assert [v.type for v in inferred.graph.output] == [v.type for v in model.graph.output]


def test_the_model_that_was_given_is_not_changed() -> None:
    model = NETS["chain"]()
    before = model.SerializeToString(deterministic=True)

    without(model, trace(model), groups(model)[0].units[:4].tolist())

    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Softmax", [], {"axis": 1}),
        ("CumSum", [np.array(1, np.int64)], {}),
        ("LRN", [], {"size": 3}),
        ("Transpose", [], {"perm": [0, 1, 3, 2]}),
        ("Pad", [np.array([0, 1, 0, 0, 0, -1, 0, 0], np.int64)], {}),
        ("Gather", [np.arange(16)[::-1].copy()], {"axis": 1}),
    ],
)
def test_channels_that_reach_an_operator_that_is_not_understood_stay(
    operator: str, inputs: list[NDArray[Any]], attributes: dict[str, Any]
) -> None:
    model = with_operator(operator, inputs=inputs, **attributes)

    assert [len(group.units) for group in groups(model)] == [8]


def test_channels_stay_where_a_constant_that_would_shrink_is_read_elsewhere_too() -> None:
    net = Net()
    offset = net.weight(1, 16, 1, 1)
    x = net.add("Add", net.conv("x", 3, 16), offset)
    x = net.add("Add", net.conv(x, 16, 16), offset)

    assert groups(net.model(net.head(x, 16))) == ()


def test_channels_of_an_output_stay() -> None:
    model = NETS["chain"]()
    model.graph.output.append(
        helper.make_tensor_value_info(model.graph.node[1].output[0], TensorProto.FLOAT, None)
    )

    assert [len(group.units) for group in groups(model)] == [12]


def test_channels_that_a_subgraph_reads_stay() -> None:
    model = NETS["chain"]()
    inner = helper.make_node("ReduceSum", [model.graph.node[1].output[0]], ["z"], "inner")
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([inner], "branch", [], [value])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["i"], "if", then_branch=branch, else_branch=branch)
    )

    assert [len(group.units) for group in groups(model)] == [12]


def test_layers_that_share_a_weight_keep_their_channels() -> None:
    net = Net()
    weight = net.weight(16, 16, 1, 1)
    x = net.add("Conv", net.add("Conv", net.conv("x", 3, 16), weight), weight)
    model = net.model(net.head(x, 16))

    assert groups(model) == ()


def test_positions_that_become_samples_are_not_taken_for_channels() -> None:
    net = Net()
    x = net.conv("x", 3, 16)
    x = net.add("Reshape", x, net.constant(np.array([-1, 16], np.int64)))

    assert groups(net.model(net.gemm(x, 16, 4))) == ()


def test_the_stream_of_a_residual_net_keeps_its_channels() -> None:
    model = NETS["residual"]()

    assert {group.size for group in groups(model)} == {16}
