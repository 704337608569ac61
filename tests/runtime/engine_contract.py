"""The suite that every engine passes. A test module of an engine inherits it and gives a model."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import DataError, EngineError
from edgekit_runtime.engines import Engine, Session
from edgekit_runtime.engines.batches import can_batch, run_all


class EngineContract:
    """Subclasses give `engine` and `artifact`: y = relu(x), FP32, x of shape [-1, 4]."""

    engine: Engine

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def session(self, artifact: Path) -> Session:
        return self.engine.open(artifact, options={})

    def test_it_tells_its_version(self) -> None:
        assert self.engine.version()[0].isdigit()

    def test_it_describes_inputs_and_outputs(self, session: Session) -> None:
        (x,), (y,) = session.inputs, session.outputs

        assert (x.name, x.datatype, x.shape) == ("x", "FP32", (-1, 4))
        assert (y.name, y.datatype) == ("y", "FP32")
        assert session.providers

    def test_it_computes_whatever_the_number_of_rows(self, session: Session) -> None:
        for rows in (1, 3, 1):
            x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)

            np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))

    def test_it_takes_read_only_and_strided_arrays(self, session: Session) -> None:
        x = np.arange(-8, 8, dtype=np.float32).reshape(2, 8)
        x.flags.writeable = False

        np.testing.assert_array_equal(session.run({"x": x[:, ::2]})["y"], np.maximum(x[:, ::2], 0))

    def test_outputs_stay_after_the_next_run(self, session: Session) -> None:
        first = session.run({"x": np.ones((1, 4), np.float32)})["y"]
        session.run({"x": np.zeros((1, 4), np.float32)})

        np.testing.assert_array_equal(first, np.ones((1, 4)))

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"x": np.zeros((1, 5), np.float32)}, "'x' must have shape"),
            ({"x": np.zeros(4, np.float32)}, "'x' must have shape"),
            ({"x": np.zeros((1, 4))}, "'x' must be FP32, it is FP64"),
            ({}, "'x' is missing"),
            ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1)}, "no input 'z'"),
        ],
    )
    def test_it_names_the_input_that_is_wrong(
        self, session: Session, inputs: dict[str, np.ndarray], message: str
    ) -> None:
        with pytest.raises(EngineError, match=message):
            session.run(inputs)

        assert session.run({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 4)

    def test_another_thread_may_own_the_session(self, session: Session) -> None:
        outputs: list[float] = []
        x = np.ones((1, 4), np.float32)
        thread = threading.Thread(target=lambda: outputs.append(session.run({"x": x})["y"].sum()))
        thread.start()
        thread.join()

        assert outputs == [4.0]

    def test_a_closed_session_says_so(self, session: Session) -> None:
        session.close()

        with pytest.raises(EngineError, match="closed"):
            session.run({"x": np.ones((1, 4), np.float32)})

    @pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 1000])
    def test_a_foreign_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "foreign"
        path.write_bytes(content)

        with pytest.raises(EngineError, match="foreign"):
            self.engine.open(path, options={})

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="missing"):
            self.engine.open(tmp_path / "missing", options={})

    @pytest.mark.parametrize("options", [{"thread": 1}, {"threads": 0}, {"threads": "1"}])
    def test_options_it_does_not_know_are_refused(
        self, artifact: Path, options: dict[str, object]
    ) -> None:
        with pytest.raises(EngineError, match="options of engine"):
            self.engine.open(artifact, options=options)

    def test_many_samples_come_back_in_their_order(self, session: Session) -> None:
        x = np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32)

        np.testing.assert_array_equal(run_all(session, {"x": x})["y"], np.maximum(x, 0))
        assert isinstance(can_batch(session), bool)

    def test_samples_that_do_not_fit_are_named(self, session: Session) -> None:
        with pytest.raises(DataError, match="'x'"):
            run_all(session, {"x": np.zeros((3, 5), np.float32)})
        with pytest.raises(DataError, match="no samples"):
            run_all(session, {"x": np.zeros((0, 4), np.float32)})
