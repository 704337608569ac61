"""perf_analyzer, unchanged, over the socket and through system shared memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekit_runtime.serving.models import Models
from tests import bundles
from tests.runtime import perf_analyzer, several
from tests.runtime.served import HOST, inline, load, port, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        perf_analyzer.program() is None, reason="`make perf-analyzer` installs perf_analyzer"
    ),
]


@pytest.mark.parametrize("memory", ["none", "system"])
@pytest.mark.parametrize(
    ("model", "shapes"),
    [("tiny", [f"x:1,{bundles.FEATURES}"]), ("mixed", ["a:2,4", "b:2,2"])],
)
def test_perf_analyzer_is_answered(
    tmp_path: Path, memory: str, model: str, shapes: list[str]
) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    models.activate(models.load(several.mixed(tmp_path), verified_by="a key"))
    with serving(models) as server:
        report = perf_analyzer.measure(
            model, f"{HOST}:{port(server)}", "--shared-memory", memory, shapes=shapes
        )

        counts = [int(n) for n in re.findall(r"(?i)request count: (\d+)", report)]
        now = models.find(model).snapshot()
        assert 50 <= min(counts) <= max(counts) <= now.succeeded
        assert len(counts) == 2  # its own, and what the statistics say
        assert now.failed == now.rejected == 0
