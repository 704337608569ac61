"""What both libraries of LiteRT keep: the contract, on the CPU and through a delegate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edgekit.errors import EngineError
from edgekit_runtime.engines import Engine, Session
from tests.runtime.delegate import build, needs_compiler
from tests.runtime.engine_contract import EngineContract
from tests.runtime.tflite_models import TfliteModels, chain, relu_by_sums, sums


class LiteRtContract(TfliteModels, EngineContract):
    """On the CPU."""

    datatypes = ("FP32", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL")

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        return self.relu(tmp_path)

    def test_on_the_cpu_alone_nothing_is_on_an_accelerator(self, session: Session) -> None:
        assert session.placement is not None
        assert session.placement.share == 0


@needs_compiler
class DelegateContract(LiteRtContract):
    """Through the delegate of the tests, which takes additions."""

    @pytest.fixture(autouse=True)
    def _delegate(self, delegate: Path) -> None:
        self.options = {"delegates": [{"name": str(delegate)}]}  # type: ignore[misc]

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        path = tmp_path / "relu.tflite"
        path.write_bytes(relu_by_sums())
        return path

    def test_on_the_cpu_alone_nothing_is_on_an_accelerator(self, session: Session) -> None:
        assert session.placement is not None
        assert session.placement.fallback_ops == ("MUL", "RELU")


@pytest.fixture(scope="module")
def delegate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The delegate's library."""
    return build(tmp_path_factory.mktemp("delegate"))


@needs_compiler
class DelegateBehaviour:
    """What is seen of a delegate that takes some of a model."""

    engine: ClassVar[Engine]

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        path = tmp_path / "sums.tflite"
        path.write_bytes(sums())
        return path

    def open(self, artifact: Path, delegate: Path, options: Mapping[str, Any]) -> Session:
        given = {"delegates": [{"name": str(delegate), "options": dict(options)}]}
        return self.engine.open(artifact, options=given)

    @pytest.fixture
    def opened(self, artifact: Path, delegate: Path) -> Iterator[Session]:
        session = self.open(artifact, delegate, {"off_by": 0.25})
        yield session
        session.close()

    def test_the_delegate_computes_what_it_took(self, opened: Session) -> None:
        x = np.array([[1, -1, 2, -2]], np.float32)

        y = opened.run({"x": x})["y"]

        a = x + x + 0.25
        np.testing.assert_array_equal(y, np.maximum(a * 2, 0) + a + 0.25)

    def test_operators_that_it_left_are_named(self, opened: Session) -> None:
        placed = opened.placement

        assert placed is not None
        assert placed.fallback_ops == ("FULLY_CONNECTED", "RELU")
        # All MACs are in the one step that it does not take.
        assert (placed.share, placed.unit) == (0.0, "macs")

    def test_what_it_takes_only_some_of_is_named_too(self, artifact: Path, delegate: Path) -> None:
        placed = self.open(artifact, delegate, {"at_most": 1}).placement

        assert placed is not None
        assert placed.fallback_ops == ("ADD", "FULLY_CONNECTED", "RELU")

    def test_a_delegate_that_takes_nothing_is_seen(self, artifact: Path, delegate: Path) -> None:
        placed = self.open(artifact, delegate, {"at_most": 0}).placement

        assert placed is not None
        assert placed.share == 0

    def test_a_whole_model_is_on_it(self, tmp_path: Path, delegate: Path) -> None:
        path = tmp_path / "chain.tflite"
        path.write_bytes(chain(5))
        session = self.open(path, delegate, {"off_by": 1})

        y = session.run({"x": np.array([[1, 2, 3, 4]], np.float32)})["y"]

        assert session.placement is not None
        assert (session.placement.share, session.placement.fallback_ops) == (1.0, ())
        np.testing.assert_array_equal(y, np.array([[1, 2, 3, 4]], np.float32) * 6 + 5)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"speed": 2}, "there is no such option"),
            ({"fail": "create"}, "told to fail in create"),
            ({"fail": "prepare"}, "told to fail in prepare"),
        ],
    )
    def test_a_delegate_that_refuses_says_why(
        self, artifact: Path, delegate: Path, options: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(EngineError, match=told):
            self.open(artifact, delegate, options)

    def test_a_delegate_that_fails_in_a_run_is_an_error_and_never_replaced(
        self, artifact: Path, delegate: Path
    ) -> None:
        session = self.open(artifact, delegate, {"fail": "invoke"})

        with pytest.raises(EngineError, match="told to fail in invoke"):
            session.run({"x": np.ones((1, 4), np.float32)})
