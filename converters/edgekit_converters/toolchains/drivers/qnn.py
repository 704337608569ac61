"""Qualcomm's QNN provider of onnxruntime: compiles a graph for an HTP, and runs it in emulation.

Request: `task`, `model` (path) and `provider_options`. `compile` writes `artifact`, an ONNX file
that holds a context binary, and replies `fallback`, the nodes [name, operator, reason] that are
left to the CPU. `run` reads `samples` (.npz: `i0`, `i1`, … in the order of `names`, axis 0
counting samples, each of which is a whole input) and writes `outputs` (.npz: `o0`, `o1`, … in the
order of `tensors`), with CPU fallback disabled unless `fallback` is true.
"""

import json
import os
import re
import shutil
import tempfile

import numpy as np
import onnxruntime
import onnxruntime_qnn

_PROVIDER = "QNNExecutionProvider"
_TRACED = os.path.join("trace", "qnn_op_trace.json")
_SETUP = re.compile(r"QNN SetupBackend failed ([^\x1b\n]+)")
_UNSUPPORTED = re.compile(r"\{ name: (.+?), type: (\w+) \}")
_NAMED = 4


def run(request: dict) -> dict:
    """Do one of the two tasks."""
    onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    return {"compile": _compile, "run": _run}[request["task"]](request)


def _compile(request: dict) -> dict:
    # Names inside of the file are made from the path that it is compiled from, as it is given.
    shutil.copyfile(request["model"], "model.onnx")
    settings = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "1",
        "ep.context_file_path": "context.onnx",
    }
    traced = {"enable_framework_op_trace": "1", "framework_op_trace_dir": "trace"}
    options = {**request["provider_options"], **traced}
    strict = {**settings, "session.disable_cpu_ep_fallback": "1"}
    fallback = []
    refusal, said = _attempt(options, strict)
    if refusal:
        refusal, _ = _attempt(options, settings)
        if refusal or not os.path.isfile(_TRACED):
            raise ValueError(_nodes(said) or _unset(said) or refusal or "it looks at no node")
        fallback = _left()
    if not os.path.isfile("context.onnx"):
        raise ValueError("it takes no node of the graph")
    os.replace("context.onnx", request["artifact"])
    return {"fallback": fallback, "version": onnxruntime_qnn.__version__}


def _attempt(options: dict, settings: dict) -> tuple:
    """Compile once; why it failed, empty where it did not, and what the provider printed."""
    if os.path.exists("context.onnx"):
        # It is written before a fallback is found and refused.
        os.remove("context.onnx")
    refusal = ""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            _open("model.onnx", options, settings)
        # Each of onnxruntime's errors is a class of its own.
        except Exception as e:  # noqa: BLE001
            refusal = _line(e)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        said = printed.read().decode(errors="replace")
    print(said, refusal, flush=True)
    return refusal, said


def _nodes(said: str) -> str:
    """The nodes that are not taken as they stand, by the provider's first complaint."""
    first = next((line for line in said.splitlines() if "Unsupported nodes" in line), "")
    nodes = [f"{operator} {name!r}" for name, operator in _UNSUPPORTED.findall(first)]
    if not nodes:
        return ""
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return f"this HTP does not take {', '.join(nodes[:_NAMED])}{more} in this form"


def _unset(said: str) -> str:
    """Why the provider does not start at all, by its first complaint."""
    found = _SETUP.search(said)
    return f"the HTP of these provider options cannot be set up: {found[1]}" if found else ""


def _run(request: dict) -> dict:
    strict = {} if request["fallback"] else {"session.disable_cpu_ep_fallback": "1"}
    try:
        session = _open(request["model"], request["provider_options"], strict)
    except Exception as e:
        raise ValueError(f"the emulation does not open it: {_line(e)}") from e
    samples = np.load(request["samples"])
    arrays = [samples[f"i{i}"] for i in range(len(request["names"]))]
    found = [[] for _ in request["tensors"]]
    for whole in zip(*arrays, strict=True):
        feeds = dict(zip(request["names"], whole, strict=True))
        try:
            outputs = session.run(request["tensors"], feeds)
        except Exception as e:
            raise ValueError(f"the emulation does not run it: {_line(e)}") from e
        for values, output in zip(found, outputs, strict=True):
            values.append(output)
    np.savez(request["outputs"], **{f"o{i}": np.stack(values) for i, values in enumerate(found)})
    return {"version": onnxruntime_qnn.__version__}


def _open(model: str, options: dict, settings: dict) -> onnxruntime.InferenceSession:
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == _PROVIDER]
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = 1
    for name, value in settings.items():
        session.add_session_config_entry(name, value)
    backend = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}
    session.add_provider_for_devices(devices, {**options, **backend})
    return onnxruntime.InferenceSession(model, session)


def _left() -> list:
    with open(_TRACED, encoding="utf-8") as file:
        nodes = json.load(file).get("unsupported_nodes", [])
    return [[node["node_name"], node["op_type"], node["reason"]] for node in nodes]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
