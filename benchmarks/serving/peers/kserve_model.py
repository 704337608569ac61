"""KServe's Python server: Open Inference Protocol v2 over REST, JSON and binary.

Set: one worker with uvloop, gRPC off, latency log and its own logging off (its command-line
options). `predict` is `async`, so that the model runs on the event loop: no thread to wake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.serving.peers import forms
from benchmarks.serving.peers.forms import Array, Form

PACKAGES = ("kserve==0.21.0", "onnxruntime==1.31.1")
FORMS: tuple[Form, ...] = ("binary", "json")
answer = forms.v2_answer


def request(array: Array, form: Form) -> bytes:
    return forms.v2("/v2/models/m/infer", array, form, output="y")


def serve(model: Path, port: int, shape: tuple[int, ...]) -> None:  # noqa: ARG001 - forms.main's
    import kserve  # type: ignore[import-not-found]
    from kserve.protocol.infer_type import InferOutput, InferResponse  # type: ignore[import-not-found]

    class Model(kserve.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("m")
            self.run = forms.engine(model)
            self.ready = True

        async def predict(self, payload: Any, headers: Any = None, **_: Any) -> Any:  # noqa: ARG002
            result = self.run(payload.inputs[0].as_numpy())
            output = InferOutput(name="y", shape=list(result.shape), datatype="FP32")
            binary = payload.inputs[0].parameters is not None
            output.set_data_from_numpy(result, binary_data=binary)
            return InferResponse(payload.id or "", "m", [output])

    server = kserve.ModelServer(
        http_port=port,
        workers=1,
        enable_grpc=False,
        enable_latency_logging=False,
        event_loop="uvloop",
        access_log_format=None,
    )
    server.start([Model()])


if __name__ == "__main__":
    forms.main(serve)
