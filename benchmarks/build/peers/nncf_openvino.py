"""NNCF on OpenVINO's own format, with its defaults; OpenVINO runs the result."""

from __future__ import annotations

import nncf  # type: ignore[import-not-found]
import onnx
import openvino

from benchmarks.build.peers.script import arguments, calibration


def main() -> None:
    path, samples, out = arguments()
    feeds = calibration(onnx.load(path), samples)
    model = openvino.convert_model(path)
    quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main()
