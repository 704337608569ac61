"""Running artefacts in the engines that boards serve them with, where those run here too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import SampleArrays, run_all

# Larger batches gain nothing on a CPU and hold more activations.
_BATCH = 8


def answers(
    artifact: Path, inputs: SampleArrays, *, engine: str, options: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Outputs for samples (axis 0 counts them), raising `EngineError` where the engine refuses."""
    session = ENGINES.get(engine).open(artifact, options=options)
    try:
        return run_all(session, inputs, max_batch=_BATCH)
    finally:
        session.close()
