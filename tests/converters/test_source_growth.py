"""A small file that would grow to gigabytes is refused before anything computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit_converters import source
from edgekit_converters.sources import growth
from tests.converters.building import write_model
from tests.converters.test_source_hostile import refused


def model_of(
    *nodes: onnx.NodeProto,
    constants: dict[str, np.ndarray] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    """A model from `x` [N, 4] to `y` [N, 4]."""
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "hostile",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
            [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
        functions=functions or [],
    )


def summed(made: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Nodes that add the sum of a tensor to `x`."""
    return (
        helper.make_node("ReduceSum", [made], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    )


HUGE = np.array([100_000, 100_000], np.int64)
ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([helper.make_node("ConstantOfShape", ["size"], ["made"])], {"size": HUGE}),
        ([helper.make_node("Expand", ["one", "size"], ["made"])], {"one": ONE, "size": HUGE}),
        ([helper.make_node("Tile", ["one", "size"], ["made"])], {"one": ONE, "size": HUGE}),
        (
            [
                helper.make_node("Range", ["from", "to", "step"], ["whole"]),
                helper.make_node("Cast", ["whole"], ["made"], to=TensorProto.FLOAT),
            ],
            {"from": np.array(0), "to": np.array(10**10), "step": np.array(1)},
        ),
        (
            [helper.make_node("Resize", ["picture", "", "", "size"], ["made"])],
            {
                "picture": np.ones((1, 1, 1, 1), np.float32),
                "size": np.array([1, 1, 100_000, 100_000], np.int64),
            },
        ),
        (
            [helper.make_node("MatMul", ["tall", "wide"], ["made"])],
            {"tall": np.ones((60_000, 1), np.float32), "wide": np.ones((1, 60_000), np.float32)},
        ),
        (
            [helper.make_node("RandomNormal", [], ["made"], shape=[100_000, 100_000])],
            {},
        ),
        (
            # The size goes through an operator that shape inference does not follow.
            [
                helper.make_node("Neg", ["size"], ["less"]),
                helper.make_node("Abs", ["less"], ["more"]),
                helper.make_node("ConstantOfShape", ["more"], ["made"]),
            ],
            {"size": HUGE},
        ),
        (
            # The size comes from the shape of an input.
            [
                helper.make_node("Transpose", ["x"], ["turned"]),
                helper.make_node("Pad", ["turned", "pads"], ["made"]),
            ],
            {"pads": np.array([0, 0, 100_000, 100_000], np.int64)},
        ),
    ],
    ids=lambda value: value[-1].op_type if isinstance(value, list) else "",
)
def test_a_tensor_that_grows_without_bound_is_refused(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    path = write_model(tmp_path, model_of(*nodes, *summed("made"), constants=constants))

    refused(path, r"the tensor '\w+' would have \d{11} bytes")


def test_many_constants_that_are_too_much_together_are_refused(tmp_path: Path) -> None:
    made = [helper.make_node("ConstantOfShape", ["size"], [f"made{i}"]) for i in range(8)]
    total = helper.make_node("Sum", [f"made{i}" for i in range(8)], ["made"])
    model = model_of(*made, total, *summed("made"), constants={"size": np.array([8_000, 3_000])})

    refused(write_model(tmp_path, model), "its constants would be computed to")


def test_a_constant_whose_size_cannot_be_told_is_refused(tmp_path: Path) -> None:
    hidden = helper.make_node("Bernoulli", ["chance"], ["drawn"])
    whole = helper.make_node("Cast", ["drawn"], ["size"], to=TensorProto.INT64)
    made = helper.make_node("ConstantOfShape", ["size"], ["made"])
    model = model_of(hidden, whole, made, *summed("made"), constants={"chance": np.ones(2)})

    refused(write_model(tmp_path, model), "'made' would be computed to a size that cannot be told")


def branch(name: str, size: str, *, claims: bool = False) -> onnx.GraphProto:
    """A body that sums a tensor `made`; with `claims` it says that it is small."""
    made = helper.make_node("ConstantOfShape", [size], ["made"])
    total = helper.make_node("ReduceSum", ["made"], [f"{name}.sum"], keepdims=0)
    output = helper.make_tensor_value_info(f"{name}.sum", TensorProto.FLOAT, [])
    graph = helper.make_graph([made, total], name, [], [output])
    if claims:
        graph.value_info.append(helper.make_tensor_value_info("made", TensorProto.FLOAT, [1, 1]))
    return graph


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (branch("then", "size"), branch("else", "size")),
        (branch("then", "few"), branch("else", "size")),
        (branch("then", "few"), branch("else", "size", claims=True)),
    ],
    ids=["both", "one of a name", "one that claims less"],
)
def test_a_tensor_that_grows_inside_a_branch_is_refused(
    first: onnx.GraphProto, second: onnx.GraphProto, tmp_path: Path
) -> None:
    model = model_of(
        helper.make_node("If", ["yes"], ["sum"], then_branch=first, else_branch=second),
        helper.make_node("Add", ["x", "sum"], ["y"]),
        constants={"yes": np.array(True), "size": HUGE, "few": np.ones(2, np.int64)},
    )

    refused(write_model(tmp_path, model), "'made' would have 40000000000 bytes")


def test_a_size_behind_a_long_way_is_refused(tmp_path: Path) -> None:
    way = [helper.make_node("Abs", [f"s{i}"], [f"s{i + 1}"]) for i in range(5_000)]
    made = helper.make_node("ConstantOfShape", ["s5000"], ["made"])
    model = model_of(*way, made, *summed("made"), constants={"s0": HUGE})

    refused(write_model(tmp_path, model), "'made' would be computed to a size that cannot be told")


def test_what_folding_would_compute_is_listed() -> None:
    model = model_of(
        helper.make_node("Shape", ["pads"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["made"]),
        *summed("made"),
        constants={"pads": np.zeros((5, 7))},
    )

    assert growth.foldable_bytes(model) == {"shape": 16, "made": 140, "sum": 4}


def doubling(count: int) -> list[onnx.FunctionProto]:
    """Functions of which each calls the one before it twice."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = [helper.make_node("Relu", ["a"], ["b"])]
    functions = [helper.make_function("own", "F0", ["a"], ["b"], made, imports)]
    for number in range(1, count):
        calls = [
            helper.make_node(f"F{number - 1}", ["a"], ["c"], domain="own"),
            helper.make_node(f"F{number - 1}", ["c"], ["b"], domain="own"),
        ]
        functions.append(helper.make_function("own", f"F{number}", ["a"], ["b"], calls, imports))
    return functions


def test_functions_that_expand_to_a_billion_nodes_are_refused(tmp_path: Path) -> None:
    call = helper.make_node("F29", ["x"], ["y"], domain="own")

    refused(write_model(tmp_path, model_of(call, functions=doubling(30))), "functions expand")


def test_functions_that_call_each_other_a_thousand_deep_are_refused(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own",
            f"F{number}",
            ["a"],
            ["b"],
            [
                helper.make_node(f"F{number - 1}", ["a"], ["b"], domain="own")
                if number
                else helper.make_node("Relu", ["a"], ["b"])
            ],
            imports,
        )
        for number in range(1000)
    ]
    call = helper.make_node("F999", ["x"], ["y"], domain="own")

    refused(write_model(tmp_path, model_of(call, functions=functions)), "depth|deep")


def test_functions_that_expand_to_a_few_nodes_are_read(tmp_path: Path) -> None:
    call = helper.make_node("F3", ["x"], ["y"], domain="own")

    assert source.read(write_model(tmp_path, model_of(call, functions=doubling(4)))).sha256


def test_functions_that_call_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function(
            "own",
            name,
            ["a"],
            ["b"],
            [helper.make_node(other, ["a"], ["b"], domain="own")],
            imports,
        )
        for name, other in (("A", "B"), ("B", "A"))
    ]
    call = helper.make_node("A", ["x"], ["y"], domain="own")

    refused(write_model(tmp_path, model_of(call, functions=functions)), "[Cc]ycle")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
            "topologically sorted",
        ),
        (
            [helper.make_node("Relu", ["x"], ["b"]), helper.make_node("Abs", ["x"], ["b"])],
            "multiple times",
        ),
    ],
    ids=["circle", "twice"],
)
def test_a_graph_in_a_circle_or_with_a_name_twice_is_refused(
    nodes: list[onnx.NodeProto], message: str, tmp_path: Path
) -> None:
    model = model_of(*nodes, helper.make_node("Relu", ["b"], ["y"]))

    refused(write_model(tmp_path, model), message)
