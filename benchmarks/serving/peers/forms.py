"""What the peers' files share: requests as bytes, answers as arrays, one engine for all.

Runs in every peer's environment: the standard library, numpy and onnxruntime, and no more.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["binary", "json"]
Array = NDArray[np.float32]

OCTETS = "application/octet-stream"
JSON = "application/json"


def post(path: str, body: bytes, *, kind: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A request over HTTP/1.1 on a connection that stays open."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def v2(path: str, array: Array, form: Form, *, output: str | None = None) -> bytes:
    """Open Inference Protocol v2, as JSON or with the binary tensor extension.

    Args:
        path: where the model is.
        array: for input `x`.
        form: of input and output alike.
        output: whose name must be given for a binary answer; all are wanted otherwise.
    """
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(array.shape)}
    if form == "json":
        tensor["data"] = array.reshape(-1).tolist()
        return post(path, json.dumps({"inputs": [tensor]}).encode(), kind=JSON)
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    request: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    if output is not None:
        request["outputs"] = [{"name": output, "parameters": {"binary_data": True}}]
    head = json.dumps(request).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return post(path, head + array.tobytes(), kind=OCTETS, headers=length)


def v2_answer(headers: Mapping[str, str], body: bytes) -> Array:
    """The one output of an answer to `v2`."""
    length = headers.get("inference-header-content-length")
    if length is None:
        (output,) = json.loads(body)["outputs"]
        return np.array(output["data"], dtype=np.float32)
    return np.frombuffer(body[int(length) :], dtype=np.float32)


def raw_answer(headers: Mapping[str, str], body: bytes) -> Array:
    """An answer that is the values themselves, as JSON or as bytes."""
    if headers.get("content-type", "").startswith(JSON):
        return np.array(json.loads(body), dtype=np.float32).reshape(-1)
    return np.frombuffer(body, dtype=np.float32)


def engine(model: Path) -> Callable[[Array], Array]:
    """The model in onnxruntime on one thread, as every server of this comparison runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run(array: Array) -> Array:
        output: Array = session.run(["y"], {"x": array})[0]
        return output

    return run


def main(serve: Callable[[Path, int, tuple[int, ...]], None]) -> None:
    """`MODEL PORT SHAPE…`: serve until the process is ended."""
    # numpy's own threads would take cores from everybody.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve(Path(sys.argv[1]), int(sys.argv[2]), tuple(map(int, sys.argv[3:])))
