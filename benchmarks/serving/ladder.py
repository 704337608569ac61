"""What a ladder of variants is worth: right answers in time under bursts, on labelled handwriting.

    python -m benchmarks.serving.ladder --json out.json

Three classifiers of scikit-learn's digits, trained here, are the variants of one bundle: a linear
one, a network, and eight networks that vote. Requests arrive open loop, as a Poisson
process whose rate jumps between quiet and bursts that the large one cannot carry. Each asks for an
answer within a deadline. An answer counts if it came in time, from the moment the request was due,
and names the right digit. All arms see the same arrivals and the same test digits, in turns:
each variant pinned, the ladder, and the cascade.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from benchmarks.process import tell
from edgekit_runtime.capacity.wire import END_OF_HEAD
from tests import bundles

Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]

TRAINED_ON = 400
VOTERS = 8
WIDE = (1024, 1024)
CONNECTIONS = 48


def graph(members: Sequence[Layers]) -> bytes:
    """An ONNX classifier, `x` [n, 64] to probabilities `y` [n, 10]: the mean of its members."""
    nodes, weights, scores = [], [], []
    for index, layers in enumerate(members):
        current = "x"
        for layer, (matrix, bias) in enumerate(layers):
            label = f"{index}_{layer}"
            weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{label}"))
            weights.append(numpy_helper.from_array(bias.astype(np.float32), f"b{label}"))
            operands = [current, f"w{label}", f"b{label}"]
            nodes.append(helper.make_node("Gemm", operands, [f"g{label}"]))
            last = layer == len(layers) - 1
            kind = "Softmax" if last else "Relu"
            nodes.append(helper.make_node(kind, [f"g{label}"], [f"r{label}"]))
            current = f"r{label}"
        scores.append(current)
    nodes.append(helper.make_node("Mean", scores, ["y"]))
    made = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    opset = [helper.make_opsetid("", bundles.OPSET)]
    model = helper.make_model(made, opset_imports=opset, ir_version=bundles.IR)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def train() -> tuple[dict[str, bytes], NDArray[np.float32], NDArray[np.int64]]:
    """The variants, the most accurate first; and digits that none of them has seen."""
    digits, labels = load_digits(return_X_y=True)
    digits = (digits / 16).astype(np.float32)
    seen, test, seen_labels, test_labels = train_test_split(
        digits, labels, train_size=TRAINED_ON, random_state=0, stratify=labels
    )

    def network(widths: Sequence[int], seed: int) -> Layers:
        # Each sees its own draw of the digits, so that their votes differ.
        drawn = np.random.default_rng(seed).integers(0, len(seen), len(seen))
        model = MLPClassifier(widths, max_iter=20, random_state=seed)
        model.fit(seen[drawn], seen_labels[drawn])
        return list(zip(model.coefs_, model.intercepts_, strict=True))

    linear = LogisticRegression(C=0.02, max_iter=400).fit(seen, seen_labels)
    models = {
        "float": graph([network(WIDE, seed) for seed in range(VOTERS)]),
        "middle": graph([network(WIDE, 0)]),
        "small": graph([[(linear.coef_.T, linear.intercept_)]]),
    }
    return models, test, test_labels


def arrivals(
    rng: np.random.Generator, *, seconds: float, quiet: float, burst: float
) -> NDArray[np.float64]:
    """When requests are due: Poisson, of every second three quarters quiet and the rest a burst."""
    due: list[float] = []
    at = 0.0
    while at < seconds:
        rate = burst if at % 1.0 > 0.75 else quiet
        at += rng.exponential(1 / rate)
        due.append(at)
    return np.array(due)


def request(sample: NDArray[np.float32], parameters: dict[str, Any]) -> bytes:
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 64],
        "parameters": {"binary_data_size": sample.nbytes},
    }
    parameters = {"binary_data_output": True, **parameters}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    head = (
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(body)}\r\n"
        f"Content-Length: {len(body) + sample.nbytes}\r\n\r\n"
    )
    return head.encode() + body + sample.tobytes()


class Drive:
    """Sends requests when they are due, each over a free connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        self._free = asyncio.Queue()

    async def connect(self) -> None:
        for _ in range(CONNECTIONS):
            self._free.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))

    async def run(
        self, due: NDArray[np.float64], messages: Sequence[bytes]
    ) -> list[tuple[float, int, str]]:
        """Latency from when it was due in seconds, digit (-1: none) and variant, of each."""
        start = time.perf_counter()
        tasks = []
        for at, message in zip(due, messages, strict=True):
            wait = start + at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._ask(message, start + at)))
        return list(await asyncio.gather(*tasks))

    async def _ask(self, message: bytes, due: float) -> tuple[float, int, str]:
        reader, writer = await self._free.get()
        writer.write(message)
        head = await reader.readuntil(END_OF_HEAD)
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        body = await reader.readexactly(int(fields[b"content-length"]))
        self._free.put_nowait((reader, writer))
        took = time.perf_counter() - due
        if not head.startswith(b"HTTP/1.1 200"):
            return took, -1, ""
        length = int(fields[b"inference-header-content-length"])
        variant = json.loads(body[:length])["parameters"]["variant"]
        return took, int(np.frombuffer(body[length:], np.float32).argmax()), variant


async def measure(port: int, options: argparse.Namespace, test: Any, labels: Any) -> dict[str, Any]:
    timeout = {"timeout": int(options.deadline_ms * 1000)}
    arms: dict[str, dict[str, Any]] = {
        **{name: {"variant": name, **timeout} for name in ("float", "middle", "small")},
        "ladder": timeout,
        "cascade": {"cascade": 0.5, **timeout},
    }
    drive = Drive(port)
    await drive.connect()
    warm = [request(test[0], parameters) for parameters in arms.values()]
    for _ in range(20):
        await drive.run(np.zeros(len(warm)), warm)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for turn in range(options.rounds):
        rng = np.random.default_rng(turn)
        due = arrivals(rng, seconds=options.seconds, quiet=options.quiet, burst=options.burst)
        chosen = rng.integers(0, len(test), len(due))
        for name, parameters in arms.items():
            answers = await drive.run(due, [request(test[i], parameters) for i in chosen])
            took, digits, by = (np.array(column) for column in zip(*answers, strict=True))
            in_time = (took <= options.deadline_ms / 1000) & (digits >= 0)
            right = in_time & (digits == labels[chosen])
            shares = {"right_in_time": float(right.mean()), "in_time": float(in_time.mean())}
            for variant in ("float", "middle", "small"):
                shares[f"by_{variant}"] = float((by == variant).mean())
            found[name].append(shares)
    return {
        name: {key: mean(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--quiet", type=float, default=30.0, help="requests per second")
    parser.add_argument("--burst", type=float, default=700.0, help="requests per second")
    parser.add_argument("--deadline-ms", type=float, default=40.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    models, test, labels = train()
    with tempfile.TemporaryDirectory() as name:
        beside = {label: models[label] for label in ("middle", "small")}
        bundle = bundles.write(Path(name), name="digits", model=models["float"], beside=beside)
        command = [sys.executable, "-m", "edgekit", "run", str(bundle), "--insecure", "--json"]
        command += ["--listen", "127.0.0.1:0", "--queue", "256"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            hello = json.loads(server.stdout.readline())
            port = int(hello["addresses"][0].rsplit(":", 1)[1])
            alone = {
                label: bundles.directly(model, test).argmax(axis=1)
                for label, model in models.items()
            }
            accuracy = {label: float((said == labels).mean()) for label, said in alone.items()}
            try:
                found = asyncio.run(measure(port, options, test, labels))
            finally:
                server.terminate()
    print(f"accuracy of each variant on {len(test)} unseen digits: {accuracy}")
    print(f"{'':10}{'right in time':>14}{'in time':>9}{'float':>8}{'middle':>8}{'small':>8}")
    for arm, row in found.items():
        shares = [row[key] for key in ("by_float", "by_middle", "by_small")]
        print(
            f"{arm:10}{row['right_in_time']:14.4f}{row['in_time']:9.3f}"
            + "".join(f"{share:8.2f}" for share in shares)
        )
    if options.json:
        tell({"accuracy": accuracy, **found}, file=options.json)


if __name__ == "__main__":
    main()
