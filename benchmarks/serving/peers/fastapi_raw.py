"""FastAPI as one would write it by hand: the raw body is the tensor, and nothing else is spoken.

Set: uvicorn with uvloop and httptools, one process, access log off (uvicorn's deployment page). An
endpoint that is `async def` runs the model on the event loop: no thread to wake, the cheapest way.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.serving.peers import forms
from benchmarks.serving.peers.forms import JSON, OCTETS, Array, Form

PACKAGES = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "onnxruntime==1.31.1")
FORMS: tuple[Form, ...] = ("binary", "json")
answer = forms.raw_answer


def request(array: Array, form: Form) -> bytes:
    if form == "json":
        return forms.post("/json", json.dumps(array.tolist()).encode(), kind=JSON)
    return forms.post("/binary", array.tobytes(), kind=OCTETS)


def serve(model: Path, port: int, shape: tuple[int, ...]) -> None:
    import uvicorn
    from fastapi import FastAPI, Request, Response  # type: ignore[import-not-found]

    run = forms.engine(model)
    app = FastAPI()

    async def binary(request: Request) -> Response:
        array = np.frombuffer(await request.body(), dtype=np.float32).reshape(shape)
        return Response(run(array).tobytes(), media_type=OCTETS)

    async def as_json(request: Request) -> Response:
        array = np.array(json.loads(await request.body()), dtype=np.float32)
        return Response(json.dumps(run(array).tolist()), media_type=JSON)

    # Annotations are text in this file: these are the ones that FastAPI looks for.
    for function in (binary, as_json):
        function.__annotations__ = {"request": Request, "return": Response}
    app.add_api_route("/binary", binary, methods=["POST"])
    app.add_api_route("/json", as_json, methods=["POST"])
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    forms.main(serve)
