"""MLPerf LoadGen's side of the cross-check; runs in LoadGen's own environment, stdlib only.

`HOST PORT MESSAGE LIMIT_NS QUANTILE TARGET_QPS MIN_S FOLDER`: one Server scenario at one rate;
prints what LoadGen's summary says as JSON. Arrivals, percentiles and the verdict are LoadGen's; a
few threads carry the requests.
"""

from __future__ import annotations

import json
import queue
import re
import socket
import sys
import threading
from pathlib import Path

import mlperf_loadgen  # type: ignore[import-not-found]

THREADS = 32


class Carrier(threading.Thread):
    """Sends what LoadGen issues over one connection, one request after the other."""

    def __init__(self, where: tuple[str, int], message: bytes, issued: queue.SimpleQueue[int]):
        super().__init__(daemon=True)
        self._sock = socket.create_connection(where)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._message = message
        self._issued = issued

    def run(self) -> None:
        while (query := self._issued.get()) >= 0:
            self._sock.sendall(self._message)
            self._receive()
            mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(query, 0, 0)])

    def _receive(self) -> None:
        received = self._sock.recv(1 << 16)
        while b"\r\n\r\n" not in received:
            received += self._sock.recv(1 << 16)
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"a request was answered {head!r}")
        left = int(head.lower().split(b"content-length: ")[-1].split(b"\r\n")[0]) - len(body)
        while left > 0:
            left -= len(self._sock.recv(1 << 16))


def main() -> None:
    host, port, message, limit_ns, quantile, rate, seconds, folder = sys.argv[1:]
    issued: queue.SimpleQueue[int] = queue.SimpleQueue()
    raw = Path(message).read_bytes()
    carriers = [Carrier((host, int(port)), raw, issued) for _ in range(THREADS)]
    for carrier in carriers:
        carrier.start()
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = mlperf_loadgen.TestScenario.Server
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = float(rate)
    settings.server_target_latency_ns = int(limit_ns)
    settings.server_target_latency_percentile = float(quantile)
    settings.min_duration_ms = round(float(seconds) * 1000)
    settings.min_query_count = 1
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    logs = mlperf_loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False

    def issue(samples: list[mlperf_loadgen.QuerySample]) -> None:
        for sample in samples:
            issued.put(sample.id)

    sut = mlperf_loadgen.ConstructSUT(issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(1, 1, lambda _: None, lambda _: None)
    mlperf_loadgen.StartTestWithLogSettings(sut, library, settings, logs)
    mlperf_loadgen.DestroyQSL(library)
    mlperf_loadgen.DestroySUT(sut)
    for _ in carriers:
        issued.put(-1)
    print(json.dumps(told(Path(folder, "mlperf_log_summary.txt").read_text("utf-8"))))


def told(summary: str) -> dict[str, object]:
    """What LoadGen's summary says of a Server run."""

    def value(name: str) -> str:
        found = re.search(rf"^\s*{re.escape(name)}\s*:\s*(\S+)", summary, re.MULTILINE)
        if found is None:
            raise SystemExit(f"LoadGen's summary has no line {name!r}:\n{summary}")
        return found[1]

    return {
        "completed_per_s": float(value("Completed samples per second")),
        "valid": value("Result is") == "VALID",
        "p50_ms": float(value("50.00 percentile latency (ns)")) / 1e6,
        "p99_ms": float(value("99.00 percentile latency (ns)")) / 1e6,
        "performance_met": value("Performance constraints satisfied") == "Yes",
    }


if __name__ == "__main__":
    main()
