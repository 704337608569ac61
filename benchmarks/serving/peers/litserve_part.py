"""The LitServe APIs, which its workers unpickle by name."""

import os
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]
import numpy as np
from fastapi import Response, UploadFile  # type: ignore[import-not-found]

from benchmarks.serving.peers import forms
from benchmarks.serving.peers.forms import OCTETS, Array

SHAPE = tuple(map(int, os.environ["SHAPE"].split()))


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:  # noqa: ARG002 - its interface
        self.run = forms.engine(Path(os.environ["MODEL"]))

    def predict(self, array: Array) -> Array:
        return self.run(array)


class Binary(Api):
    def decode_request(self, request: UploadFile) -> Array:
        return np.frombuffer(request.file.read(), dtype=np.float32).reshape(SHAPE)

    def encode_response(self, output: Array) -> Response:
        return Response(output.tobytes(), media_type=OCTETS)


class Json(Api):
    # Without annotations, which would make it read the request in another way.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return np.array(request["x"], dtype=np.float32)

    def encode_response(self, output: Array) -> list[Any]:
        values: list[Any] = output.tolist()
        return values
