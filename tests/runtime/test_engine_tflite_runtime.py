"""tflite-runtime keeps the contract of engines, in an environment of its own."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from edgekit_runtime.engines import ENGINES
from tests.runtime.litert_contract import (
    DelegateBehaviour,
    DelegateContract,
    LiteRtContract,
    delegate,
)

__all__ = ["delegate"]

is_here = util.find_spec("tflite_runtime") is not None

if is_here:

    class TestTfliteRuntime(LiteRtContract):
        engine = ENGINES.get("tflite-runtime")

    class TestTfliteRuntimeThroughADelegate(DelegateContract):
        engine = ENGINES.get("tflite-runtime")

    class TestDelegateOfTfliteRuntime(DelegateBehaviour):
        engine = ENGINES.get("tflite-runtime")

else:
    from tests.converters.chains import needs
    from tests.runtime.elsewhere import run_tests

    @needs("tflite-runtime")
    def test_the_contract_is_kept_in_the_librarys_own_environment() -> None:
        assert "passed" in run_tests(Path(__file__), toolchain="tflite-runtime")
