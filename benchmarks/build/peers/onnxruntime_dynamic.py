"""Plain onnxruntime: dynamic int8, which takes no samples, per channel."""

from __future__ import annotations

from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.build.peers.onnxruntime_prepare import prepare
from benchmarks.build.peers.script import arguments


def main() -> None:
    model, _, out = arguments()
    prepared = prepare(model, out)
    quantize_dynamic(prepared, out / "model.onnx", per_channel=True, weight_type=QuantType.QInt8)
    prepared.unlink()


if __name__ == "__main__":
    main()
