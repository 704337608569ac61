"""Runs a TFLite file in the LiteRT or tflite-runtime of this environment, sample by sample.

Request: `model`, `inputs` (.npz, `i0` and so on, axis 0 counting samples, each of which is a whole
input), `feeds` (the tensor that each is for, by its number in the file), `outputs` (.npz to write,
`o0` and so on), `tensors` (those to fetch, by number), `inner` (whether some of them are inside of
the graph: what the runtime has no memory for is left out) and `most_s` (CPU time after which no
further sample begins, null for none).
Reply: `version`, and `count` of the samples that were run.
"""

import time
import warnings
from importlib import metadata

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter

    PACKAGE = "ai-edge-litert"
except ImportError:
    from tflite_runtime.interpreter import Interpreter

    PACKAGE = "tflite-runtime"


def run(request):
    """Run at least one sample."""
    version = metadata.version(PACKAGE)
    interpreter = _opened(request, version)
    with np.load(request["inputs"]) as held:
        samples = {number: held[f"i{i}"] for i, number in enumerate(request["feeds"])}
    total = len(next(iter(samples.values())))
    found = {number: [] for number in request["tensors"]}
    begun = time.process_time()
    count = 0
    while count < total:
        if count and request["most_s"] and time.process_time() - begun > request["most_s"]:
            break
        try:
            _feed(
                interpreter, {number: np.asarray(array[count]) for number, array in samples.items()}
            )
            interpreter.invoke()
        except (ValueError, RuntimeError) as e:
            raise ValueError(f"{PACKAGE} {version} does not run it: {e}") from e
        for number in list(found):
            tensor = _tensor(interpreter, number, inner=request["inner"])
            if tensor is None:
                del found[number]
            else:
                found[number].append(tensor)
        count += 1
    arrays = {
        f"o{i}": np.stack(found[number])
        for i, number in enumerate(request["tensors"])
        if number in found
    }
    np.savez(request["outputs"], **arrays)
    return {"version": version, "count": count}


def _opened(request, version):
    try:
        with warnings.catch_warnings():
            # It warns of the memory that all tensors take, and they are what is asked for.
            warnings.simplefilter("ignore", UserWarning)
            interpreter = Interpreter(
                model_path=request["model"],
                num_threads=1,
                experimental_preserve_all_tensors=request["inner"],
            )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as e:
        raise ValueError(f"{PACKAGE} {version} does not load it: {e}") from e
    return interpreter


def _tensor(interpreter, number, *, inner):
    try:
        return interpreter.get_tensor(number)
    except ValueError:
        if inner:
            return None
        raise


def _feed(interpreter, arrays):
    shapes = {detail["index"]: tuple(detail["shape"]) for detail in interpreter.get_input_details()}
    if any(shapes[number] != array.shape for number, array in arrays.items()):
        for number, array in arrays.items():
            interpreter.resize_tensor_input(number, array.shape)
        interpreter.allocate_tensors()
    for number, array in arrays.items():
        interpreter.set_tensor(number, np.asarray(array, order="C"))
