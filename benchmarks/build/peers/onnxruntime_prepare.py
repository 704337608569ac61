"""What onnxruntime asks for before it quantizes: `quant_pre_process`, with what it can infer."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.build.peers.script import recent


def prepare(model: Path, out: Path) -> Path:
    """The model, simplified and with shapes, in `out`."""
    source, prepared = out / "source.onnx", out / "prepared.onnx"
    onnx.save(recent(model), source)
    try:
        quant_pre_process(source, prepared)
    except Exception as e:  # noqa: BLE001 - it raises a bare Exception, and says to skip this step
        print(f"symbolic shape inference failed, going on without it: {e}")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    source.unlink()
    return prepared
