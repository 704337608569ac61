"""Samples go to a tool in parts and come back as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import profile
from edgekit.manifest import TensorSpec
from edgekit_converters.targets import whole
from edgekit_converters.toolchains import ToolChain
from tests.converters.target_jobs import job_of
from tests.converters.tiny_toolchains import add

BOARD = profile.find("intel-n100")
DOUBLES = """
import numpy as np

def run(request):
    held = np.load(request["samples"])
    with open(request["counts"], "a") as file:
        file.write(f"{len(held['i0'])} ")
    np.savez(request["outputs"], o0=held["i0"] * 2)
    return {}
"""


@settings(
    max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(count=st.integers(1, 9), most=st.integers(1, 4))
def test_however_samples_are_parted_the_answers_are_the_same(
    count: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, ToolChain(name="shell", title="shell", program="sh"))
    monkeypatch.setattr(whole, "_PROCESS_BYTES", most * 12)
    driver, counts = tmp_path / "doubles.py", tmp_path / "counts"
    driver.write_text(DOUBLES)
    counts.write_text("")
    samples = {"x": np.arange(count * 3, dtype=np.float32).reshape(count, 3)}
    job = job_of(
        BOARD,
        BOARD.engines[0],
        tmp_path / "job",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
    )

    found = whole.answers_in("shell", {"counts": str(counts)}, samples, job, driver=driver)

    assert np.array_equal(found["y"], samples["x"] * 2)
    assert max(map(int, counts.read_text().split())) <= most
    assert list((tmp_path / "job").iterdir()) == []
