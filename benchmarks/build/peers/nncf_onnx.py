"""NNCF on the ONNX model itself, with its defaults; onnxruntime runs the result."""

from __future__ import annotations

import nncf  # type: ignore[import-not-found]
import onnx

from benchmarks.build.peers.script import arguments, calibration, recent


def main() -> None:
    path, samples, out = arguments()
    model = recent(path)
    feeds = calibration(model, samples)
    quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))
    onnx.save(quantized, out / "model.onnx")


if __name__ == "__main__":
    main()
