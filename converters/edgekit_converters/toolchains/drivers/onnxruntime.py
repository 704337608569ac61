"""Runs an ONNX file in the onnxruntime of this environment, on the CPU, sample by sample.

Request: `model`, `inputs` (.npz, `i0` and so on, axis 0 counting samples, each of which is a whole
input), `feeds` (the input that each is for, by name), `outputs` (.npz to write, `o0` and so on),
`tensors` (the outputs to fetch, by name) and `most_s` (CPU time after which no further sample
begins, null for none).
Reply: `version`, and `count` of the samples that were run.
"""

import time

import numpy as np
import onnxruntime


def run(request):
    """Run at least one sample."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            request["model"], options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:
        raise ValueError(f"onnxruntime {onnxruntime.__version__} does not load it: {e}") from e
    with np.load(request["inputs"]) as held:
        samples = {name: held[f"i{i}"] for i, name in enumerate(request["feeds"])}
    total = len(next(iter(samples.values())))
    found = [[] for _ in request["tensors"]]
    begun = time.process_time()
    count = 0
    while count < total:
        if count and request["most_s"] and time.process_time() - begun > request["most_s"]:
            break
        feeds = {name: np.asarray(array[count], order="C") for name, array in samples.items()}
        try:
            outputs = session.run(request["tensors"], feeds)
        except Exception as e:
            raise ValueError(f"onnxruntime {onnxruntime.__version__} does not run it: {e}") from e
        for kept, output in zip(found, outputs, strict=True):
            kept.append(output)
        count += 1
    np.savez(request["outputs"], **{f"o{i}": np.stack(kept) for i, kept in enumerate(found)})
    return {"version": onnxruntime.__version__, "count": count}
