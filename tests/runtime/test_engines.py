"""Each engine keeps the contract, and what is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import EngineError, UsageError
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import run_all
from tests.runtime.engine_contract import EngineContract
from tests.runtime.onnx_models import TYPES, OnnxModels, save


class TestOnnxRuntime(OnnxModels, EngineContract):
    engine = ENGINES.get("onnxruntime")
    datatypes = tuple(TYPES)

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        return self.relu(tmp_path)

    def test_a_provider_that_is_not_here_is_named_and_never_replaced(self, artifact: Path) -> None:
        options = {"providers": [{"name": "TensorrtExecutionProvider"}]}

        with pytest.raises(EngineError, match="TensorrtExecutionProvider is not available") as e:
            self.engine.open(artifact, options=options)
        assert "CPUExecutionProvider" in e.value.message

    def test_provider_options_reach_the_provider(self, artifact: Path) -> None:
        providers = [{"name": "CPUExecutionProvider", "options": {"use_arena": False}}]
        session = self.engine.open(artifact, options={"providers": providers, "threads": 2})

        assert session.providers == ("CPUExecutionProvider",)

    def test_reference_kernels_answer_as_a_quantised_graph_says(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        constants: dict[str, NDArray[Any]] = {
            "s": np.array(0.05, np.float32),
            "z": np.array(128, np.uint8),
            "sw": np.array(0.01, np.float32),
            "zw": np.array(0, np.int8),
            "w": rng.integers(-127, 128, (16, 8)).astype(np.int8),
        }
        nodes = [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
            for name, value in constants.items()
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
            helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"]),
            helper.make_node("MatMul", ["xf", "wf"], ["m"]),
            helper.make_node("QuantizeLinear", ["m", "s", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
        ]
        x, y = ("x", TensorProto.FLOAT, [1, 16]), ("y", TensorProto.FLOAT, [1, 8])
        path = save(tmp_path / "qdq.onnx", nodes, [x], [y])
        inputs = {"x": rng.standard_normal((1, 16)).astype(np.float32)}

        fused = self.engine.open(path, options={}).run(inputs)["y"]
        plain = self.engine.open(path, options={"reference_kernels": True}).run(inputs)["y"]

        quantised = np.clip(np.round(inputs["x"] / 0.05), -128, 127) * 0.05
        exact = np.clip(quantised @ (constants["w"] * 0.01), -6.4, 6.35)
        np.testing.assert_allclose(plain, exact, atol=0.026)
        np.testing.assert_allclose(fused, plain, atol=0.051)

    def test_whole_inputs_are_run_one_by_one(self, tmp_path: Path) -> None:
        path = save(
            tmp_path / "state.onnx",
            [helper.make_node("Add", ["x", "h"], ["y"])],
            [("x", TensorProto.FLOAT, [1, 3]), ("h", TensorProto.FLOAT, [2, 1, 3])],
            [("y", TensorProto.FLOAT, [2, 1, 3])],
        )
        session = self.engine.open(path, options={})
        x, h = np.ones((5, 3), np.float32), np.arange(30, dtype=np.float32).reshape(5, 2, 1, 3)

        np.testing.assert_array_equal(run_all(session, {"x": x, "h": h})["y"], h + 1)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(UsageError, match="no engine called 'warp'"):
        ENGINES.get("warp")


def test_every_engine_says_what_of_it_was_run() -> None:
    said = {name: ENGINES.get(name).evidence for name in ENGINES.names()}

    assert {"rknn", "hailo"} == {name for name, word in said.items() if word == "never run"}
    assert all(ENGINES.get(name).evidence_note for name in said)
