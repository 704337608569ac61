"""LitServe: binary as an uploaded file, which is its documented way to send bytes; JSON as a body.

Set: one worker for each of two APIs, `fast_queue` (ZeroMQ; the documentation's advice for high
throughput), no batching (it waits for company), log level warning.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.serving.peers import forms
from benchmarks.serving.peers.forms import JSON, OCTETS, Array, Form

PACKAGES = (
    "litserve==0.2.19",
    "uvloop==0.23.0",
    "httptools==0.9.0",
    "pyzmq",
    "python-multipart",
    "onnxruntime==1.31.1",
)
FORMS: tuple[Form, ...] = ("binary", "json")
_BOUNDARY = "edgekit"
answer = forms.raw_answer


def request(array: Array, form: Form) -> bytes:
    if form == "json":
        return forms.post("/json", json.dumps({"x": array.tolist()}).encode(), kind=JSON)
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="request"; filename="x"\r\n'
        f"Content-Type: {OCTETS}\r\n\r\n"
    )
    body = head.encode() + array.tobytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return forms.post("/binary", body, kind=f"multipart/form-data; boundary={_BOUNDARY}")


def serve(model: Path, port: int, shape: tuple[int, ...]) -> None:
    os.environ.update(MODEL=str(model), SHAPE=" ".join(map(str, shape)))
    import litserve  # type: ignore[import-not-found]

    from benchmarks.serving.peers.litserve_part import Binary, Json

    apis = [Binary(api_path="/binary"), Json(api_path="/json")]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    forms.main(serve)
