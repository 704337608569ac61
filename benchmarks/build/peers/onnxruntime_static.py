"""Plain onnxruntime: static int8 as its documentation shows it, per channel, min-max."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from benchmarks.build.peers.onnxruntime_prepare import prepare
from benchmarks.build.peers.script import arguments, calibration


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples as onnxruntime asks for them: one at a time, then None."""

    def __init__(self, samples: list[dict[str, NDArray[Any]]]) -> None:
        self._rest: Iterator[dict[str, NDArray[Any]]] = iter(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next sample."""
        return next(self._rest, None)


def main() -> None:
    model, samples, out = arguments()
    prepared = prepare(model, out)
    quantize_static(
        prepared,
        out / "model.onnx",
        Reader(calibration(onnx.load(prepared), samples)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    Path(prepared).unlink()


if __name__ == "__main__":
    main()
