"""MLServer: Open Inference Protocol v2 over REST as JSON. It has no binary tensors over HTTP; over
gRPC it has raw contents, which `grpc_load` sends.

Set: `parallel_workers=0` (the model in the server's own process: its documentation's advice for
small models, and cheaper here), metrics and debug off, no adaptive batching (it waits for company),
gzip off.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.serving.peers import forms
from benchmarks.serving.peers.forms import Array, Form

PACKAGES = ("mlserver==1.7.1", "onnxruntime==1.31.1")
FORMS: tuple[Form, ...] = ("json",)
GRPC_FORMS: tuple[Form, ...] = ("binary",)
# Its gRPC port is this much above the HTTP port.
GRPC_PORT_STEP = 1
answer = forms.v2_answer


def request(array: Array, form: Form) -> bytes:
    return forms.v2("/v2/models/m/infer", array, form)


def serve(model: Path, port: int, shape: tuple[int, ...]) -> None:  # noqa: ARG001 - forms.main's
    folder = tempfile.mkdtemp(prefix="mlserver-")
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + GRPC_PORT_STEP,
        "parallel_workers": 0,
        "metrics_endpoint": None,
        "gzip_enabled": False,
        "debug": False,
    }
    Path(folder, "settings.json").write_text(json.dumps(settings), "utf-8")
    described = {"name": "m", "implementation": "benchmarks.serving.peers.mlserver_part.Model"}
    Path(folder, "model-settings.json").write_text(json.dumps(described), "utf-8")
    mlserver = Path(sys.executable).with_name("mlserver")
    environment = {**os.environ, "MODEL": str(model.resolve())}
    os.execve(mlserver, [str(mlserver), "start", folder], environment)


if __name__ == "__main__":
    forms.main(serve)
