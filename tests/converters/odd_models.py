"""Minimal models that naive conversion spoils, and samples for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.converters.graph_models import Arrays, node, noise

SAMPLES = 160


def tensor(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: Arrays | None = None,
    *domains: tuple[str, int],
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    return helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs, tensors),
        ir_version=8,
        opset_imports=[helper.make_opsetid(*domain) for domain in (("", 17), *domains)],
    )


def samples(folder: Path, **arrays: Any) -> Path:
    path = folder / "samples.npz"
    np.savez(path, **arrays)
    return path


def rows(folder: Path) -> Path:
    return samples(folder, x=noise(SAMPLES, 16))


def recurrent(kind: str, gates: int) -> onnx.ModelProto:
    """A recurrent layer over x [12, 1, 8], and a head of ten classes."""
    hidden = 16
    nodes = [
        node(kind, ["x", "w", "r"], ["", "state"], kind.lower(), hidden_size=hidden),
        node("Squeeze", ["state", "first"], ["last"], "squeeze"),
        node("MatMul", ["last", "head"], ["scores"], "head"),
    ]
    constants = {
        "w": noise(1, gates * hidden, 8, seed=1),
        "r": noise(1, gates * hidden, hidden, seed=2) * np.float32(0.3),
        "first": np.array([0]),
        "head": noise(hidden, 10, seed=3),
    }
    return graph(nodes, [tensor("x", [12, 1, 8])], [tensor("scores", [1, 10])], constants)


def branched() -> onnx.ModelProto:
    """Two products in one branch and one in the other; input `sr` decides."""
    deep = helper.make_graph(
        [
            node("MatMul", ["x", "w1"], ["a"], "wide"),
            node("Relu", ["a"], ["b"], "relu"),
            node("MatMul", ["b", "w2"], ["deep"], "narrow"),
        ],
        "deep",
        [],
        [tensor("deep", ["N", 10])],
    )
    flat = helper.make_graph(
        [node("MatMul", ["x", "w3"], ["flat"], "only")], "flat", [], [tensor("flat", ["N", 10])]
    )
    return graph(
        [
            node("Equal", ["sr", "rate"], ["is_fast"], "equal"),
            node("If", ["is_fast"], ["scores"], "branch", then_branch=deep, else_branch=flat),
        ],
        [tensor("x", ["N", 64]), tensor("sr", [], TensorProto.INT64)],
        [tensor("scores", ["N", 10])],
        {
            "w1": noise(64, 64, seed=1),
            "w2": noise(64, 10, seed=2),
            "w3": noise(64, 10, seed=3),
            "rate": np.array(16000),
        },
    )


def classifier(*outputs: str) -> onnx.ModelProto:
    known = {
        "label": tensor("label", ["N"], TensorProto.INT64),
        "scores": tensor("scores", ["N", 10]),
    }
    nodes = [
        node("MatMul", ["x", "w1"], ["a"], "first"),
        node("Relu", ["a"], ["b"], "relu"),
        node("MatMul", ["b", "w2"], ["scores"], "second"),
        node("ArgMax", ["scores"], ["label"], "best", axis=1, keepdims=0),
    ]
    constants = {"w1": noise(16, 64, seed=1), "w2": noise(64, 10, seed=2)}
    return graph(nodes, [tensor("x", ["N", 16])], [known[name] for name in outputs], constants)
