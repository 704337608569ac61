"""BentoML: binary as a body of octets, JSON as a list that its model validation turns into numpy.

Set: one worker, no batching (it waits for company), metrics, tracing and the access log off: the
documentation's settings for them; started by `bentoml serve` in production mode.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.serving.peers import forms
from benchmarks.serving.peers.forms import JSON, OCTETS, Array, Form

PACKAGES = ("bentoml==1.4.39", "uvloop==0.23.0", "httptools==0.9.0", "onnxruntime==1.31.1")
FORMS: tuple[Form, ...] = ("binary", "json")
answer = forms.raw_answer


def request(array: Array, form: Form) -> bytes:
    if form == "json":
        return forms.post("/json", json.dumps({"x": array.tolist()}).encode(), kind=JSON)
    return forms.post("/binary", array.tobytes(), kind=OCTETS)


def serve(model: Path, port: int, shape: tuple[int, ...]) -> None:
    environment = {
        **os.environ,
        "MODEL": str(model.resolve()),
        "SHAPE": " ".join(map(str, shape)),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": tempfile.mkdtemp(prefix="bento-"),
    }
    bentoml = Path(sys.executable).with_name("bentoml")
    service = "benchmarks.serving.peers.bentoml_part:Model"
    words = ["serve", service, "--host", "127.0.0.1", "--port", str(port)]
    os.execve(bentoml, [str(bentoml), *words], environment)


if __name__ == "__main__":
    forms.main(serve)
