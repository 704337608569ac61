"""OpenVINO: runs an ONNX file on a device of this machine, or asks the device what it takes.

Request: `task`, `model` (path) and `device`. `run` reads `samples` (.npz: `i0`, `i1`, … in the
order of `names`, axis 0 counting samples, each of which is a whole input), sets `properties`, and
writes `outputs` (.npz: `o0`, `o1`, … in the order of `tensors`). `query` replies `there`, whether
this machine has the device, and `left`, the operations [name, type] that it does not take.
"""

import numpy as np
import openvino

# What a plugin computes itself, whatever it says of them.
_OWN = ("Parameter", "Result", "Constant")


def run(request: dict) -> dict:
    """Do one of the two tasks."""
    return {"query": _query, "run": _run}[request["task"]](request)


def _query(request: dict) -> dict:
    core = openvino.Core()
    if request["device"] not in [name.partition(".")[0] for name in core.available_devices]:
        return {"there": False, "left": []}
    model = core.read_model(request["model"])
    taken = core.query_model(model, request["device"])
    left = [node for node in model.get_ordered_ops() if node.get_friendly_name() not in taken]
    found = [[n.get_friendly_name(), n.get_type_name()] for n in left]
    return {"there": True, "left": [entry for entry in found if entry[1] not in _OWN]}


def _run(request: dict) -> dict:
    try:
        compiled = openvino.Core().compile_model(
            request["model"], request["device"], request["properties"]
        )
    except RuntimeError as e:
        raise ValueError(f"it does not open it: {' '.join(str(e).split())}") from e
    samples = np.load(request["samples"])
    arrays = [samples[f"i{i}"] for i in range(len(request["names"]))]
    found = [[] for _ in request["tensors"]]
    for whole in zip(*arrays, strict=True):
        outputs = compiled(dict(zip(request["names"], whole, strict=True)), share_outputs=False)
        for values, name in zip(found, request["tensors"], strict=True):
            values.append(outputs[name])
    np.savez(request["outputs"], **{f"o{i}": np.stack(values) for i, values in enumerate(found)})
    return {"version": openvino.__version__}
