"""OpenVINO with no quantization: what the other engine gives by itself."""

from __future__ import annotations

import openvino

from benchmarks.build.peers.script import arguments


def main() -> None:
    path, _, out = arguments()
    openvino.save_model(openvino.convert_model(path), out / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main()
