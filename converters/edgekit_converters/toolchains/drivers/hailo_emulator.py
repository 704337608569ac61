"""Answers samples in the emulator of Hailo's Dataflow Compiler; run by the Python that has it.

Arguments: the quantised model (`.har`), the chip, samples (`.npz`: `i0`, whole inputs, channels
first) and where answers go (`.npz`: `o0`, channels last, as the emulator has them). It has not been
run: the compiler is in no package index. Its calls are those of its user guide.
"""

import sys

import numpy as np
from hailo_sdk_client import ClientRunner, InferenceContext

_IMAGE_AXES = 4


def main(archive: str, arch: str, samples: str, outputs: str) -> None:
    with np.load(samples) as given:
        values = np.concatenate(given["i0"])
    if values.ndim == _IMAGE_AXES:
        values = np.moveaxis(values, 1, -1)
    runner = ClientRunner(hw_arch=arch, har=archive)
    with runner.infer_context(InferenceContext.SDK_QUANTIZED) as context:
        answers = runner.infer(context, values)
    several = isinstance(answers, (list, tuple))
    if several and len(answers) != 1:
        raise SystemExit(f"{len(answers)} outputs, whose order is not known: one can be judged")
    np.savez(outputs, o0=np.asarray(answers[0] if several else answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
