"""A closed loop over gRPC, for a peer that takes binary tensors in no other way.

The client costs more than a raw socket does, so its requests per second are a lower bound; the
server's CPU for each request is not touched by that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.serving.peers.forms import Array

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def message(array: Array) -> bytes:
    """A ModelInferRequest for model `m`, input `x` as raw contents."""
    request = service_pb2.ModelInferRequest(
        model_name="m",
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(
                name="x", datatype="FP32", shape=array.shape
            )
        ],
        raw_input_contents=[array.tobytes()],
    )
    raw: bytes = request.SerializeToString()
    return raw


def ask(port: int, raw: bytes) -> Array:
    """One answer."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        reply = _call(channel)(raw)
    answer = service_pb2.ModelInferResponse.FromString(reply)
    return np.frombuffer(answer.raw_output_contents[0], dtype=np.float32)


def closed_loop(port: int, raw: bytes, *, connections: int, duration_s: float) -> tuple[int, float]:
    """Keep connections busy; answers, and seconds that it took."""
    stop = time.monotonic() + duration_s
    counts = [0] * connections

    def client(place: int) -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=own) as channel:
            call = _call(channel)
            while time.monotonic() < stop:
                call(raw)
                counts[place] += 1

    began = time.monotonic()
    threads = [threading.Thread(target=client, args=(place,)) for place in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts), time.monotonic() - began


def _call(channel: grpc.Channel) -> Callable[[bytes], bytes]:
    """The method, from bytes to bytes."""
    method: Any = channel.unary_unary(METHOD)

    def call(raw: bytes) -> bytes:
        reply: bytes = method(raw, timeout=30)
        return reply

    return call
