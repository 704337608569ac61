"""Qualcomm's QNN provider keeps the contract of engines, in its x86 emulation of the HTP.

The emulation computes what the HTP computes, in integers; it says nothing of speed.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path

if util.find_spec("onnxruntime_qnn") is None:
    from tests.converters.chains import needs
    from tests.runtime.elsewhere import run_tests

    @needs("qnn")
    def test_the_contract_is_kept_in_the_emulation() -> None:
        assert "passed" in run_tests(Path(__file__).with_name("qnn_contract.py"), toolchain="qnn")
