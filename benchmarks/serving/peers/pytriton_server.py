"""PyTriton: Triton's C++ front end, with the model in a Python process beside it.

Set: no batching (`batching=False`, so that shapes are given whole), metrics and gRPC off, log level
0; the rest is as its documentation has it. JSON and binary are Triton's own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.peers import forms
from benchmarks.serving.peers.forms import Array, Form

PACKAGES = ("nvidia-pytriton==0.7.0", "onnxruntime==1.31.1")
FORMS: tuple[Form, ...] = ("binary", "json")
answer = forms.v2_answer


def request(array: Array, form: Form) -> bytes:
    return forms.v2("/v2/models/m/infer", array, form)


def serve(model: Path, port: int, shape: tuple[int, ...]) -> None:
    from pytriton.model_config import ModelConfig, Tensor  # type: ignore[import-not-found]
    from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

    # Its back end links to libpython, and must find the one whose library it then imports.
    library = sysconfig.get_config_var("LIBDIR")
    os.environ["LD_LIBRARY_PATH"] = f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    run = forms.engine(model)

    def infer(requests: list[Any]) -> list[dict[str, Array]]:
        return [{"y": run(request["x"])} for request in requests]

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=port,
        grpc_address="127.0.0.1",
        grpc_port=_free_port(),
        metrics_port=_free_port(),
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="m",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=shape)],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(1, -1))],
            config=ModelConfig(batching=False),
        )
        triton.serve()


def _free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return int(taken.getsockname()[1])


if __name__ == "__main__":
    forms.main(serve)
