"""Inspect tells what a model costs, and whether it fits a board, before any build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from skops import io as skops_io  # type: ignore[import-untyped]

from edgekit import profile
from edgekit.errors import UsageError
from edgekit.inspect import inspect
from edgekit_converters.activations import Step, peak_activation_bytes, peak_bytes
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.fit import fit, judge
from edgekit_converters.inspect import facts_of, inspect_model, rows
from edgekit_converters.macs import macs_by_node
from edgekit_converters.source import OnnxSource
from tests import bundles
from tests.converters.building import convnet, write_model
from tests.converters.tflite_models import write_dense

node = helper.make_node
Arrays = dict[str, NDArray[Any]]


def zeros(*sizes: int) -> NDArray[np.float32]:
    return np.zeros(sizes, np.float32)


def model(
    nodes: Sequence[onnx.NodeProto], constants: Arrays, shape: Sequence[int | str]
) -> onnx.ModelProto:
    source = helper.make_model(
        helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )
    return onnx.shape_inference.infer_shapes(source, data_prop=True)


LSTM = {"w": zeros(1, 16, 3), "r": zeros(1, 16, 4)}


@pytest.mark.parametrize(
    ("made", "constants", "shape", "macs"),
    [
        (node("Conv", ["x", "w"], ["y"]), {"w": zeros(4, 3, 3, 3)}, [1, 3, 8, 8], 36 * 4 * 27),
        (
            node("Conv", ["x", "w"], ["y"], group=3),
            {"w": zeros(3, 1, 3, 3)},
            [1, 3, 8, 8],
            36 * 3 * 9,
        ),
        (
            node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            {"w": zeros(3, 4, 2, 2)},
            [1, 3, 8, 8],
            3 * 64 * 4 * 4,
        ),
        (node("Gemm", ["x", "w"], ["y"], transA=1), {"w": zeros(7, 5)}, [7, 2], 2 * 5 * 7),
        (node("MatMul", ["x", "w"], ["y"]), {"w": zeros(4, 5)}, ["n", 3, 4], 3 * 5 * 4),
        (
            node("Einsum", ["x", "w"], ["y"], equation="bij,jk->bik"),
            {"w": zeros(4, 5)},
            [2, 3, 4],
            2 * 3 * 4 * 5,
        ),
        (
            node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4),
            LSTM,
            [6, 1, 3],
            6 * (16 * 3 + 16 * 4),
        ),
        (
            node("GRU", ["x", "w", "r"], ["y"], hidden_size=4),
            {"w": zeros(1, 12, 3), "r": zeros(1, 12, 4)},
            [6, 2, 3],
            12 * (12 * 3 + 12 * 4),
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_macs_follow_from_shapes(
    made: onnx.NodeProto, constants: Arrays, shape: list[int | str], macs: int
) -> None:
    found, unknown = macs_by_node(model([made], constants, shape))

    assert found == {"y": macs}
    assert unknown == ()


def branch(name: str, output: str, kernel: int) -> onnx.GraphProto:
    return helper.make_graph(
        [node("Conv", ["x", name], [output], pads=[kernel // 2] * 4)],
        name,
        [],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(zeros(4, 3, kernel, kernel), name)],
    )


def branching() -> onnx.ModelProto:
    source = model(
        [
            node(
                "If",
                ["choice"],
                ["y"],
                "either",
                then_branch=branch("small", "a", 1),
                else_branch=branch("large", "b", 3),
            )
        ],
        {},
        [1, 3, 8, 8],
    )
    source.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    return source


def test_of_an_if_the_costlier_branch_is_counted_and_said(tmp_path: Path) -> None:
    facts = inspect_model(write_model(tmp_path, branching()))

    assert facts.macs == 64 * 4 * 3 * 9
    assert facts.parameters == 4 * 3 + 4 * 3 * 9
    assert facts.operators == {"Conv": 2, "If": 1}
    assert facts.notes == ("of If 'either' the costlier branch is counted",)
    assert facts.peak_activation_bytes is not None


def test_a_constant_input_leaves_one_branch(tmp_path: Path) -> None:
    path = write_model(tmp_path, branching())

    facts = inspect_model(path, constants={"choice": True})

    assert facts.macs == 64 * 4 * 3
    assert [spec.name for spec in facts.inputs] == ["x"]
    assert facts.notes == ()


def test_a_loop_with_a_constant_number_of_turns_costs_each_of_them() -> None:
    body = helper.make_graph(
        [node("MatMul", ["a", "w"], ["b"]), node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4]),
        ],
    )
    constants = {"n": np.array(5), "w": zeros(4, 4)}

    found, _ = macs_by_node(
        model([node("Loop", ["n", "", "x"], ["y"], body=body)], constants, [1, 4])
    )

    assert found == {"y": 5 * 16}


def test_parameters_in_constant_nodes_count(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(zeros(4, 5))
    nodes = [node("Constant", [], ["w"], value=weights), node("MatMul", ["x", "w"], ["y"])]

    facts = inspect_model(write_model(tmp_path, model(nodes, {}, [1, 4])))

    assert (facts.parameters, facts.weight_bytes) == (20, 80)


def test_what_is_not_known_is_named_and_an_input_shape_makes_it_known(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], "stem"), node("Relu", ["a"], ["y"])]
    path = write_model(tmp_path, model(nodes, {"w": zeros(4, 3, 3, 3)}, ["n", 3, "h", "w_"]))

    dynamic = inspect_model(path)
    known = inspect_model(path, shapes={"x": (1, 3, 8, 8)})

    assert dynamic.macs is None
    assert dynamic.unknown == ("stem",)
    assert dynamic.unknown_shapes == ("a", "y")
    assert any("not known" in text for _, text in rows(dynamic))
    assert known.macs == 36 * 4 * 27
    assert known.unknown_shapes == ()


def test_shapes_that_the_graph_computes_are_known(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("ReduceProd", ["shape"], ["size"], keepdims=1),
        node("Reshape", ["x", "size"], ["flat"]),
        node("MatMul", ["flat", "w"], ["y"]),
    ]
    path = write_model(tmp_path, model(nodes, {"w": zeros(24, 5)}, [2, 3, 4]))

    assert inspect_model(path).macs == 24 * 5


# Activations.


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    steps = [Step(["x"], ["a"]), Step(["a"], ["b"]), Step(["b"], ["c"])]
    sizes = {"x": 1, "a": 10, "b": 20, "c": 5}

    assert peak_bytes(steps, sizes, inputs=["x"], outputs=["c"]) == 30


def test_a_branch_adds_what_lives_inside_it() -> None:
    sizes = {"x": 1, "y": 2}

    assert peak_bytes([Step(["x"], ["y"], 100)], sizes, inputs=["x"], outputs=["y"]) == 103


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.data())
def test_the_peak_lies_between_the_largest_step_and_everything(
    made: list[int], data: st.DataObject
) -> None:
    names = [str(i) for i in range(len(made) + 1)]
    sizes = dict(zip(names, [7, *made], strict=True))
    steps = [
        Step(data.draw(st.lists(st.sampled_from(names[: i + 1]), max_size=3)), [names[i + 1]])
        for i in range(len(made))
    ]

    peak = peak_bytes(steps, sizes, inputs=[names[0]], outputs=[names[-1]])

    assert peak is not None
    assert max(made) <= peak <= sum(sizes.values())


def test_a_tensor_of_unknown_size_leaves_the_peak_unknown() -> None:
    source = model([node("Relu", ["x"], ["y"])], {}, ["n", "length"])

    assert peak_activation_bytes(source) is None


# Boards.


def test_a_model_fits_a_board_that_has_the_memory_and_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "lite0.onnx"
    write_lite0(path)

    run = CliRunner().invoke(
        inspect, [str(path), "--profile", "raspberry-pi-5", "--profile", "jetson", "--json"]
    )

    assert run.exit_code == 0, run.output
    facts = json.loads(run.stdout)
    assert facts["macs"] == 385_187_552
    pi, jetson = facts["profiles"]
    assert (pi["fits"], pi["engine"]) == ("yes", "onnxruntime on cpu")
    assert pi["memory_mb"] < pi["available_mb"]
    assert jetson["fits"] == "unknown"
    assert jetson["reasons"] == ["the memory that onnxruntime needs on the gpu is not known"]


def test_a_model_of_an_unknown_domain_fits_no_board(tmp_path: Path) -> None:
    source = helper.make_model(
        helper.make_graph(
            [node("Warp", ["x"], ["y"], domain="org.example")],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)],
    )

    run = CliRunner().invoke(
        inspect, [str(write_model(tmp_path, source)), "--profile", "raspberry-pi-5"]
    )

    assert run.exit_code == 0
    assert "no engine of the profile takes the model" in run.stdout
    assert "org.example.Warp is in no engine" in run.stdout


def test_an_engine_that_is_too_old_for_the_model_is_said() -> None:
    source = OnnxSource(Path("new.onnx"), "0" * 64, convnet(opset=21, ir=10))
    board = profile.find("generic-aarch64")
    old = tuple(msgspec.structs.replace(engine, max_onnx_ir=7) for engine in board.engines)
    facts = facts_of(source, shapes={}, constants={})

    found = fit(
        source, msgspec.structs.replace(board, engines=old), facts=facts, shapes={}, constants={}
    )

    assert found.fits == "no"
    assert any("needs ONNX IR" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("memory_mb", "available_mb", "answer"),
    [(74, 100, "yes"), (76, 100, "unknown"), (101, 100, "no"), (1, None, "unknown")],
)
def test_a_quarter_of_the_memory_is_left_to_others(
    memory_mb: int, available_mb: int | None, answer: str
) -> None:
    assert judge(taken=True, memory_mb=memory_mb, available_mb=available_mb)[0] == answer


def test_a_tflite_model_is_counted_and_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "dense.tflite"
    write_dense(path)

    run = CliRunner().invoke(
        inspect,
        [str(path), "--profile", "raspberry-pi-5", "--profile", "coral-usb", "--json"],
    )

    facts = json.loads(run.stdout)
    assert (facts["macs"], facts["parameters"]) == (640, 650)
    assert facts["weight_bytes"] == 2600
    assert facts["peak_activation_bytes"] == 4 * (64 + 10)
    pi, coral = facts["profiles"]
    assert (pi["fits"], pi["engine"]) == ("yes", "litert on cpu")
    assert "litert on tpu: the model is fp32, the profile lists int8" in coral["reasons"]


@pytest.mark.parametrize(
    "options",
    [["--fix", "rate"], ["--fix", "rate=fast"], ["--input", "x"], ["--profile", "toaster"]],
)
def test_wrong_options_are_usage_errors(options: list[str], tmp_path: Path) -> None:
    run = CliRunner().invoke(inspect, [str(write_model(tmp_path)), *options])

    assert isinstance(run.exception, UsageError) or run.exit_code == 2


def test_a_zip_that_holds_a_model_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "digits.skops"
    samples = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    skops_io.dump(LogisticRegression().fit(samples, samples[:, 0] > 0), path)

    found = CliRunner().invoke(inspect, [str(path), "--json"])

    assert found.exit_code == 0, found.output
    assert "operators" in json.loads(found.stdout)


def test_a_bundle_is_told_by_what_it_is_and_not_by_its_name(tmp_path: Path) -> None:
    path = bundles.write(tmp_path).rename(tmp_path / "renamed.zip")

    found = CliRunner().invoke(inspect, [str(path), "--json"])

    assert json.loads(found.stdout)["kind"] == "bundle"
