"""Metrics: Prometheus text (exposition format 0.0.4) of what the server and its models did."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from edgekit.messages import LATENCY_EDGES_US
from edgekit_runtime.serving.models import Served
from edgekit_runtime.serving.stats import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# One edge for each doubling: what a dashboard shows needs no more.
_EDGE_STEP = 4

Labels = Mapping[str, str]
Sample = tuple[Labels, float]


def render(models: Sequence[Served], *, connections: int, http_errors: Mapping[int, int]) -> bytes:
    """Everything as text."""
    taken = [(_labels(served), served, served.stats.snapshot()) for served in models]
    lines = [
        *_family(
            "edgekit_requests_total",
            "counter",
            "Requests answered with outputs.",
            [(labels, now.succeeded) for labels, _, now in taken],
        ),
        *_family(
            "edgekit_request_errors_total",
            "counter",
            "Requests answered with an error, by kind.",
            [
                ({**labels, "kind": kind}, count)
                for labels, _, now in taken
                for kind, count in sorted(now.errors.items())
            ],
        ),
        *_family(
            "edgekit_requests_rejected_total",
            "counter",
            "Requests turned away because the queue was full.",
            [(labels, now.rejected) for labels, _, now in taken],
        ),
        *_family(
            "edgekit_inferences_total",
            "counter",
            "Samples run.",
            [(labels, now.inferences) for labels, _, now in taken],
        ),
        *_family(
            "edgekit_executions_total",
            "counter",
            "Calls of the engine; less than inferences where requests ran together.",
            [(labels, now.executions) for labels, _, now in taken],
        ),
        *_family(
            "edgekit_engine_seconds_total",
            "counter",
            "Time within the engine.",
            [(labels, now.run_ns / 1e9) for labels, _, now in taken],
        ),
        *_family(
            "edgekit_queue_depth",
            "gauge",
            "Requests that wait.",
            [(labels, served.queue_depth) for labels, served, _ in taken],
        ),
        *_histograms((labels, now) for labels, _, now in taken),
        *_family(
            "edgekit_http_errors_total",
            "counter",
            "Answers with an error status, by status.",
            [({"status": str(status)}, n) for status, n in sorted(http_errors.items())],
        ),
        *_family("edgekit_connections", "gauge", "Open connections.", [({}, connections)]),
        *_family("process_cpu_seconds_total", "counter", "CPU time.", [({}, time.process_time())]),
        *_family("process_resident_memory_bytes", "gauge", "Resident memory.", [({}, rss_bytes())]),
    ]
    return ("\n".join(lines) + "\n").encode()


def rss_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield _line(name, labels, value)


def _histograms(models: Iterable[tuple[Labels, Snapshot]]) -> Iterator[str]:
    name = "edgekit_request_seconds"
    yield f"# HELP {name} From a request's last byte received to its answer written."
    yield f"# TYPE {name} histogram"
    for labels, now in models:
        total = 0
        for bucket, count in enumerate(now.latency):
            total += count
            if bucket < len(LATENCY_EDGES_US) and bucket % _EDGE_STEP == 0:
                edge = f"{LATENCY_EDGES_US[bucket] / 1e6:.6g}"
                yield _line(f"{name}_bucket", {**labels, "le": edge}, total)
        yield _line(f"{name}_bucket", {**labels, "le": "+Inf"}, total)
        yield _line(f"{name}_sum", labels, now.succeeded_ns / 1e9)
        yield _line(f"{name}_count", labels, now.succeeded)


def _line(name: str, labels: Labels, value: float) -> str:
    # Label values are names, versions and numbers: none holds a quote or a backslash.
    inner = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"


def _labels(served: Served) -> Labels:
    return {"model": served.name, "version": served.version, "variant": served.variant.name}
