"""The neutral judge: runs every artefact of one model in one process and compares them with float.

It runs in an environment of its own, with the engines and numpy and nothing of edgekit. It reads a
request as JSON from stdin and writes its findings as JSON to stdout:

    {"model": …, "samples": …, "output": …, "agreement": …,
     "artefacts": [{"name": …, "engine": …, "path": …}, …]}

Promise: all artefacts answer the same held-out samples, and their time is taken side by side with
the float model's in onnxruntime: one thread, batch 1, several openings of every session, chunks of
both in turn. Time is CPU time of the process, which other work on the machine lengthens less than
it lengthens waiting; on an idle core it is the latency. A ratio is the median over all chunks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.build import agreement
from benchmarks.build.samples import GROUPS, feeds, load

_OPENINGS, _CHUNKS = 5, 6
_CHUNK_S = 0.08
_TIMED_SAMPLES = 8

Feed = Mapping[str, NDArray[Any]]
Run = Callable[[Feed], dict[str, NDArray[Any]]]


def main() -> None:
    request = json.load(sys.stdin)
    arrays = load(Path(request["samples"]))
    groups = arrays[GROUPS]
    reference, ranks = _open_onnxruntime(request["model"])
    asked = feeds(arrays, ranks)
    output = request["output"]
    ours = np.stack([reference(feed)[output] for feed in asked])
    found = [
        {"name": "float", **_weight(Path(request["model"])), **_pace(request["model"], None, asked)}
    ]
    for artefact in request["artefacts"]:
        try:
            figures = _judge(request, artefact, asked, ours, groups)
        except Exception as e:  # noqa: BLE001 - engines raise anything, and it is a row of the table
            figures = {"failure": f"does not run: {type(e).__name__}: {e}"[:300]}
        found.append({"name": artefact["name"], **figures})
    json.dump({"samples": len(asked), "groups": len(np.unique(groups)), "found": found}, sys.stdout)


def _judge(
    request: Mapping[str, Any],
    artefact: Mapping[str, str],
    asked: Sequence[Feed],
    ours: NDArray[Any],
    groups: NDArray[np.int64],
) -> dict[str, Any]:
    run = _OPEN[artefact["engine"]](artefact["path"])[0]
    # OpenVINO hands out its own buffer, which the next inference overwrites.
    theirs = np.stack([run(feed)[request["output"]].copy() for feed in asked])
    table = agreement.counts(request["agreement"], ours, theirs, groups)
    return {
        "agreement": agreement.ratio(table),
        "agreement_ci95": agreement.interval(table, groups),
        "cosine": agreement.cosine(request["agreement"], ours, theirs),
        **_weight(Path(artefact["path"])),
        **_pace(request["model"], artefact, asked),
    }


def _weight(path: Path) -> dict[str, int]:
    """Size of an artefact, with the file of weights beside it where its format has one."""
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    parts += [other for other in path.parent.glob(f"{path.name}*data") if other.is_file()]
    return {"size_bytes": sum(part.stat().st_size for part in parts)}


def _pace(model: str, artefact: Mapping[str, str] | None, asked: Sequence[Feed]) -> dict[str, Any]:
    """CPU milliseconds of an inference, and how many times faster than float it is."""
    timed = [asked[n] for n in np.linspace(0, len(asked) - 1, _TIMED_SAMPLES).astype(int)]
    ratios, costs = [], []
    for _ in range(_OPENINGS):
        base = _open_onnxruntime(model)[0]
        run = _OPEN[artefact["engine"]](artefact["path"])[0] if artefact else base
        # The first chunk warms both up, and says how many inferences fill one.
        times = max(1, round(_CHUNK_S / _chunk(base, timed, 2)))
        times_run = max(1, round(_CHUNK_S / _chunk(run, timed, 2)))
        for _ in range(_CHUNKS):
            float_s, own_s = _chunk(base, timed, times), _chunk(run, timed, times_run)
            ratios.append(float_s / own_s)
            costs.append(own_s)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "cpu_ms": 1000 * statistics.median(costs),
        "speedup": middle,
        "speedup_quartiles": [low, high],
        "load": os.getloadavg()[0],
    }


def _chunk(run: Run, timed: Sequence[Feed], times: int) -> float:
    """CPU seconds of one inference, over `times` of them."""
    turns = _around(timed)
    started = time.process_time()
    for _ in range(times):
        run(next(turns))
    return (time.process_time() - started) / times


def _around(timed: Sequence[Feed]) -> Iterator[Feed]:
    while True:
        yield from timed


def _open_onnxruntime(path: str) -> tuple[Run, dict[str, int]]:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    ranks = {value.name: len(value.shape) for value in session.get_inputs()}

    def run(feed: Feed) -> dict[str, NDArray[Any]]:
        # An artefact may have an input less: one that was made a constant.
        known = {name: array for name, array in feed.items() if name in ranks}
        return dict(zip(names, session.run(names, known), strict=True))

    return run, ranks


def _open_openvino(path: str) -> tuple[Run, dict[str, int]]:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = openvino.Core().compile_model(path, "CPU", settings)
    request = model.create_infer_request()
    ranks = {port.any_name: port.partial_shape.rank.get_length() for port in model.inputs}

    def run(feed: Feed) -> dict[str, NDArray[Any]]:
        request.infer(dict(feed), share_inputs=True)
        return {
            name: request.get_output_tensor(n).data
            for n, port in enumerate(model.outputs)
            for name in port.names
        }

    return run, ranks


_OPEN: Mapping[str, Callable[[str], tuple[Run, dict[str, int]]]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}


if __name__ == "__main__":
    main()
