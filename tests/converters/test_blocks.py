"""Blocks cover a model once, in order, and lie between its residual connections."""

from __future__ import annotations

from pathlib import Path

import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, shape_inference

from edgekit_converters.blocks import blocks_of
from edgekit_converters.demo.lite0 import write_lite0
from tests.converters.building import convnet


def chain(kinds: list[bool]) -> onnx.ModelProto:
    """A square product or a Relu after the other, by whether each has work to do."""
    nodes, name = [], "x"
    for i, works in enumerate(kinds):
        reads = [name, "w"] if works else [name]
        nodes.append(helper.make_node("MatMul" if works else "Relu", reads, [f"t{i}"], f"n{i}"))
        name = f"t{i}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.5] * 16)],
    )
    return shape_inference.infer_shapes(helper.make_model(graph))


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 20))
def test_blocks_hold_every_node_once_and_in_order(kinds: list[bool], most: int) -> None:
    model = chain(kinds)

    blocks = blocks_of(model, most=most)

    assert [name for block in blocks for name in block.nodes] == [n.name for n in model.graph.node]
    assert len(blocks) <= most
    assert abs(sum(block.share for block in blocks) - 1) < 1e-9


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_every_block_has_work_where_any_node_has(kinds: list[bool]) -> None:
    blocks = blocks_of(chain(kinds))

    assert all(block.share > 0 for block in blocks)


def test_the_blocks_of_a_residual_network_are_not_cut_inside_a_connection(tmp_path: Path) -> None:
    path = tmp_path / "lite0.onnx"
    write_lite0(path)
    model = shape_inference.infer_shapes(onnx.load_model(path))
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"

    blocks = blocks_of(model)

    assert 8 <= len(blocks) <= 16
    home = {name: i for i, block in enumerate(blocks) for name in block.nodes}
    makers = {output: node.name for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Add":
            inside = {home[makers[name]] for name in node.input if name in makers}
            # One side may be the block before, whose answer the whole of this one starts from.
            assert max(inside) == home[node.name]
            assert min(inside) >= home[node.name] - 1


def test_the_same_model_gives_the_same_blocks() -> None:
    model = shape_inference.infer_shapes(convnet())

    assert blocks_of(model) == blocks_of(model)
