"""Olive with a workflow written by hand: static int8 on the same samples as everybody.

Its command line has no option for samples that are not a data set of a hub, so a user writes this.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from olive import run  # type: ignore[import-not-found]
from olive.data.registry import Registry  # type: ignore[import-not-found]

from benchmarks.build.peers.script import arguments, calibration, recent


def main() -> None:
    path, samples, out = arguments()
    model = recent(path)
    source = out / "source.onnx"
    onnx.save(model, source)
    feeds = calibration(model, samples)

    @Registry.register_dataset("calibration")  # type: ignore[untyped-decorator]
    def samples_of_all(**_: Any) -> list[dict[str, NDArray[Any]]]:
        return feeds

    @Registry.register_dataloader("calibration")  # type: ignore[untyped-decorator]
    def one_by_one(samples: Any, **_: Any) -> list[tuple[Any, None]]:
        return [(feed, None) for feed in samples]

    data = {
        "name": "calibration",
        "type": "DataContainer",
        "load_dataset_config": {"type": "calibration"},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": "calibration"},
    }
    run(
        {
            "input_model": {"type": "OnnxModel", "model_path": str(source)},
            "data_configs": [data],
            "passes": {
                "quantize": {
                    "type": "OnnxStaticQuantization",
                    "precision": "int8",
                    "activation_type": "uint8",
                    "quant_format": "QDQ",
                    "per_channel": True,
                    "data_config": "calibration",
                },
            },
            "output_dir": str(out / "workflow"),
            "no_artifacts": True,
            "evaluate_input_model": False,
        }
    )
    source.unlink()
    (written,) = Path(out / "workflow").rglob("*.onnx")
    shutil.move(written, out / "model.onnx")


if __name__ == "__main__":
    main()
