"""OpenVINO keeps the contract of engines, and what is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgekit.errors import EngineError
from edgekit.manifest import Datatype
from edgekit_runtime.engines.openvino import ENGINE, OpenVinoSession, parse
from edgekit_runtime.engines.tensors import DTYPES
from tests.runtime.engine_contract import EngineContract
from tests.runtime.onnx_models import OnnxModels, save

pytest.importorskip("openvino", reason="the extra openvino is not installed")


class TestOpenVino(OnnxModels, EngineContract):
    engine = ENGINE
    # It computes FP64 in float, and wider integers in 32 bits.
    datatypes = ("FP32", "FP16", "BOOL", "UINT8", "INT8", "UINT16", "INT16", "INT32")

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        return self.relu(tmp_path)

    def test_a_device_that_is_not_here_is_named_and_never_replaced(self, artifact: Path) -> None:
        away = next((name for name in ("NPU", "GPU") if name not in ENGINE.devices()), None)
        if away is None:
            pytest.skip("this machine has every device")

        with pytest.raises(EngineError, match=f"device {away} is not available"):
            self.engine.open(artifact, options={"device": away})

    def test_virtual_devices_are_refused(self, artifact: Path) -> None:
        with pytest.raises(EngineError, match=r"options of engine openvino.*device"):
            self.engine.open(artifact, options={"device": "AUTO"})

    def test_it_runs_where_it_was_told(self, artifact: Path) -> None:
        session = self.engine.open(artifact, options={"device": "CPU", "threads": 2})

        assert session.providers == ("CPU",)

    def test_what_was_compiled_is_kept_where_it_was_told(
        self, artifact: Path, tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        for _ in range(2):
            session = self.engine.open(artifact, options={"cache_dir": str(kept)})
            x = np.array([[-1, 2, -3, 4]], np.float32)

            np.testing.assert_array_equal(session.run({"x": x})["y"], [[0, 2, 0, 4]])

        assert list(kept.iterdir())

    @pytest.mark.parametrize("datatype", ["UINT32", "INT64", "UINT64"])
    def test_integers_beyond_32_bits_are_refused_instead_of_answered_wrongly(
        self, tmp_path: Path, datatype: Datatype
    ) -> None:
        session = self.open(self.identity(tmp_path, datatype))
        small = np.full((2, 3), 7, DTYPES[datatype])

        np.testing.assert_array_equal(session.run({"x": small})["y"], small)
        with pytest.raises(EngineError, match="'x' has values beyond 32 bits"):
            session.run({"x": np.full((2, 3), 1 << 31, DTYPES[datatype])})

    def test_what_it_exports_it_opens_again(self, artifact: Path, tmp_path: Path) -> None:
        path = tmp_path / "moved" / "exported.blob"
        path.parent.mkdir()
        path.write_bytes(OpenVinoSession(artifact, parse({})).exported())

        session = self.open(path)

        assert [spec.name for spec in (*session.inputs, *session.outputs)] == ["x", "y"]
        x = np.array([[-1, 2, -3, 4]], np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))

    def test_a_damaged_export_is_refused(self, artifact: Path, tmp_path: Path) -> None:
        path = tmp_path / "exported.blob"
        made = OpenVinoSession(artifact, parse({})).exported()
        path.write_bytes(made[: len(made) // 2])

        with pytest.raises(EngineError, match=r"cannot open .*exported\.blob"):
            self.open(path)

    def test_outputs_keep_their_names_and_order(self, tmp_path: Path) -> None:
        path = save(
            tmp_path / "two.onnx",
            [
                helper.make_node("Neg", ["b"], ["minus"]),
                helper.make_node("Cast", ["a"], ["whole"], to=TensorProto.INT64),
            ],
            [("a", TensorProto.FLOAT, [2]), ("b", TensorProto.INT32, [1, "n"])],
            [("whole", TensorProto.INT64, [2]), ("minus", TensorProto.INT32, [1, "n"])],
        )
        session = self.engine.open(path, options={})

        outputs = session.run({"b": np.array([[3, 4, 5]], np.int32), "a": np.ones(2, np.float32)})

        assert [spec.name for spec in session.outputs] == ["whole", "minus"]
        assert [spec.datatype for spec in session.inputs] == ["FP32", "INT32"]
        assert outputs["minus"].tolist() == [[-3, -4, -5]]
        assert outputs["whole"].tolist() == [1, 1]


def test_threads_are_told_to_the_cpu_alone() -> None:
    assert parse({"threads": 3}).properties["INFERENCE_NUM_THREADS"] == 3
    assert "INFERENCE_NUM_THREADS" not in parse({"threads": 3, "device": "NPU"}).properties
