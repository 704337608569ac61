"""What the scripts of the peers share: their arguments, the samples, and an opset that they take.

A script runs in its peer's environment and may import nothing of edgekit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import version_converter

from benchmarks.build.samples import feeds, load

_OPSET = 17
# Per-channel scales came with opset 13.
_OLDEST = 13


def arguments() -> tuple[Path, Path, Path]:
    """Model, samples and output folder, which is made."""
    model, samples, out = (Path(argument) for argument in sys.argv[1:4])
    out.mkdir(parents=True, exist_ok=True)
    return model, samples, out


def calibration(model: onnx.ModelProto, samples: Path) -> list[dict[str, NDArray[Any]]]:
    """The calibration samples, one set of inputs each."""
    constants = {tensor.name for tensor in model.graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in constants
    }
    return feeds(load(samples), ranks)


def recent(path: Path) -> onnx.ModelProto:
    """The model, its opset raised where it is too old for per-channel quantization."""
    model = onnx.load(path)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model if opset >= _OLDEST else version_converter.convert_version(model, _OPSET)
