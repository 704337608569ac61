"""Chain: the way of an ONNX model to a TFLite file, as the targets that ship one see it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgekit_converters.targets import Coverage, Job, engines
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.lists import rules_of
from edgekit_converters.targets.tflite.convert import float_file
from edgekit_converters.targets.tflite.quantise import PRECISION, int8_file, offers, step
from edgekit_runtime.engines.batches import SampleArrays

__all__ = ["PRECISION", "answers", "coverage", "float_file", "int8_file", "offers", "step"]


def coverage(model: onnx.ModelProto) -> Coverage:
    """What of a model cannot be converted to TFLite, read off the graph."""
    return coverage_of(model, rules_of("litert"))


def answers(
    path: Path, options: Mapping[str, Any], inputs: SampleArrays, job: Job
) -> dict[str, NDArray[Any]]:
    """Outputs of a file for samples (axis 0 counts them), as the source names and shapes them.

    Args:
        options: of the file, `TfliteFile.options()`; {} where its own interface is the source's.

    Raises:
        EngineError: LiteRT refused.
    """
    here = {"threads": job.engine.threads, **options}
    return engines.answers(path, inputs, engine="litert", options=here)
