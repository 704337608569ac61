"""Metrics: what the server, its models and the board did and do, as Prometheus text.

Labels are names that bundles, the kernel and this program give: how many series there are never
depends on what clients send. What a variant did has its name; what happened before a variant was
chosen belongs to the model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgekit.messages import LATENCY_EDGES_US
from edgekit_runtime.sensors import Board
from edgekit_runtime.serving.exposition import CONTENT_TYPE as CONTENT_TYPE
from edgekit_runtime.serving.exposition import Distribution, Labels, Sample, family, histogram
from edgekit_runtime.serving.rung import Rung
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.stats import Snapshot, merged

# One edge for each doubling: what a dashboard shows needs no more.
_EDGE_STEP = 4
_LATENCY_EDGES_S = [edge / 1e6 for edge in LATENCY_EDGES_US[::_EDGE_STEP]]
_BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)


class _Variant(NamedTuple):
    """A variant at this moment."""

    labels: Labels
    rung: Rung
    now: Snapshot


class _Model(NamedTuple):
    """A model at this moment, with what none of its variants did."""

    labels: Labels
    served: Served
    now: Snapshot


def render(
    models: Sequence[Served],
    *,
    connections: int,
    http_errors: Mapping[int, int],
    board: Board | None = None,
) -> bytes:
    """Everything as text.

    Args:
        models: that are served.
        connections: open ones.
        http_errors: answers with an error status that no model counts, by status.
        board: what its sensors say.
    """
    taken: list[_Model] = []
    variants: list[_Variant] = []
    for served in models:
        labels = {"model": served.name, "version": served.version}
        own = [_Variant({**labels, "variant": r.name}, r, r.stats.snapshot()) for r in served.rungs]
        taken.append(
            _Model(labels, served, merged([served.stats.snapshot(), *(v.now for v in own)]))
        )
        variants += own
    lines = [
        *_of_variants(variants),
        *_of_models(taken),
        *_of_caches(taken),
        *_of_drift(taken),
        *_of_server(connections, http_errors),
        *_of_board(board or Board()),
    ]
    return ("\n".join(lines) + "\n").encode()


def rss_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, by default this one; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{pid or 'self'}/statm").read_text("ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _of_variants(variants: Sequence[_Variant]) -> Iterator[str]:
    def each(value: str, scale: float = 1) -> list[Sample]:
        return [(v.labels, getattr(v.now, value) / scale) for v in variants]

    yield from family(
        "edgekit_requests_total",
        "counter",
        "Requests answered with outputs.",
        [(v.labels, v.now.succeeded) for v in variants],
    )
    yield from histogram(
        "edgekit_request_seconds",
        "From a request's last byte received to its answer written.",
        _LATENCY_EDGES_S,
        [
            Distribution(v.labels, _coarse(v.now.latency), v.now.succeeded_ns / 1e9)
            for v in variants
        ],
    )
    yield from family(
        "edgekit_queue_seconds_total",
        "counter",
        "Time that answered requests waited for a variant.",
        each("queue_ns", 1e9),
    )
    yield from family("edgekit_inferences_total", "counter", "Samples run.", each("inferences"))
    yield from family(
        "edgekit_executions_total",
        "counter",
        "Calls of the engine; less than inferences where requests ran together.",
        each("executions"),
    )
    yield from histogram(
        "edgekit_batch_samples",
        "Samples in a call of the engine.",
        _BATCH_EDGES,
        [Distribution(v.labels, _sizes(v.now), v.now.inferences) for v in variants],
    )
    yield from family(
        "edgekit_engine_seconds_total",
        "counter",
        "Time within the engine; its CPU time where it runs in one thread.",
        each("run_ns", 1e9),
    )
    yield from _of_workers(variants)


def _of_workers(variants: Sequence[_Variant]) -> Iterator[str]:
    now = time.monotonic()
    yield from family(
        "edgekit_variant_ready",
        "gauge",
        "Whether a variant can answer.",
        [(v.labels, int(v.rung.state == "ready")) for v in variants],
    )
    yield from family(
        "edgekit_variant_losses_total",
        "counter",
        "How often a variant's worker died, hung or grew too large.",
        [(v.labels, v.rung.losses) for v in variants],
    )
    yield from family(
        "edgekit_breaker_open",
        "gauge",
        "Whether a variant failed so often that it is not tried now.",
        [(v.labels, int(v.rung.breaker.is_open(now))) for v in variants],
    )
    pids = {i: v.rung.opened.runner.pid for i, v in enumerate(variants) if v.rung.was_open}
    workers = [(variants[i].labels, pid) for i, pid in pids.items() if pid is not None]
    yield from family(
        "edgekit_worker_cpu_seconds",
        "gauge",
        "CPU time of a variant's worker process since that was started.",
        [(labels, _cpu_s(pid)) for labels, pid in workers],
    )
    yield from family(
        "edgekit_worker_resident_memory_bytes",
        "gauge",
        "Resident memory of a variant's worker process, libraries that it shares included.",
        [(labels, rss_bytes(pid)) for labels, pid in workers],
    )
    held = [(v.labels, v.rung.opened.size_bytes) for v in variants if v.rung.state == "ready"]
    yield from family(
        "edgekit_variant_memory_bytes",
        "gauge",
        "Memory that an open variant counts with in the budget.",
        held,
    )


def _of_models(models: Sequence[_Model]) -> Iterator[str]:
    yield from family(
        "edgekit_request_errors_total",
        "counter",
        "Requests answered with an error, by kind.",
        [
            ({**m.labels, "kind": kind}, count)
            for m in models
            for kind, count in sorted(m.now.errors.items())
        ],
    )
    yield from family(
        "edgekit_requests_rejected_total",
        "counter",
        "Requests refused before they waited, by reason.",
        [
            ({**m.labels, "reason": reason}, count)
            for m in models
            for reason, count in sorted(m.now.refusals.items())
        ],
    )
    yield from family(
        "edgekit_requests_cancelled_total",
        "counter",
        "Requests whose client left before the answer.",
        [(m.labels, m.now.cancelled) for m in models],
    )
    yield from family(
        "edgekit_queue_depth",
        "gauge",
        "Requests that wait.",
        [(m.labels, m.served.queue_depth) for m in models],
    )


def _of_caches(models: Sequence[_Model]) -> Iterator[str]:
    caches = [(m.labels, m.served.cache) for m in models if m.served.cache is not None]
    yield from family(
        "edgekit_cache_hits_total",
        "counter",
        "Requests whose answer was known.",
        [(labels, cache.hits) for labels, cache in caches],
    )
    yield from family(
        "edgekit_cache_misses_total",
        "counter",
        "Requests that were looked up in vain.",
        [(labels, cache.misses) for labels, cache in caches],
    )
    yield from family(
        "edgekit_cache_bytes",
        "gauge",
        "Memory of the answers that are kept.",
        [(labels, cache.size_bytes) for labels, cache in caches],
    )
    yield from family(
        "edgekit_cache_on",
        "gauge",
        "Whether looking up pays, so that it is done.",
        [(labels, int(cache.is_on)) for labels, cache in caches],
    )


def _of_drift(models: Sequence[_Model]) -> Iterator[str]:
    states = [(m.labels, m.served.drift.state) for m in models if m.served.drift is not None]
    judged = [(labels, state.last) for labels, state in states if state.last is not None]
    yield from family(
        "edgekit_drift_samples_total",
        "counter",
        "Samples that were looked at.",
        [(labels, state.rows) for labels, state in states],
    )
    yield from family(
        "edgekit_drift_windows_total",
        "counter",
        "Windows that were held against the reference in the bundle.",
        [(labels, state.windows) for labels, state in states],
    )
    yield from family(
        "edgekit_drift_alarms_total",
        "counter",
        "Windows that differed more than chance does on one day in a hundred.",
        [(labels, state.alarms) for labels, state in states],
    )
    yield from family(
        "edgekit_drift",
        "gauge",
        "Whether the last window differed so much.",
        [(labels, int(last.drifts)) for labels, last in judged],
    )
    yield from family(
        "edgekit_drift_p_value",
        "gauge",
        "How often chance alone differs as much as the last window.",
        [(labels, last.p) for labels, last in judged],
    )
    yield from family(
        "edgekit_drift_distance_ratio",
        "gauge",
        "By how much the shares of the feature that differs most differed in the last window.",
        [(labels, last.distance) for labels, last in judged],
    )


def _of_server(connections: int, http_errors: Mapping[int, int]) -> Iterator[str]:
    yield from family(
        "edgekit_http_errors_total",
        "counter",
        "Answers with an error status, by status.",
        [({"status": str(status)}, n) for status, n in sorted(http_errors.items())],
    )
    yield from family("edgekit_connections", "gauge", "Open connections.", [({}, connections)])
    yield from family(
        "process_cpu_seconds_total", "counter", "CPU time.", [({}, time.process_time())]
    )
    yield from family(
        "process_resident_memory_bytes", "gauge", "Resident memory.", [({}, rss_bytes())]
    )
    open_files = len(os.listdir("/proc/self/fd"))
    yield from family("process_open_fds", "gauge", "Open descriptors.", [({}, open_files)])


def _of_board(board: Board) -> Iterator[str]:
    for name, label, text, values, scale in (
        ("temperature_celsius", "zone", "Temperature.", board.temperatures_c, 1.0),
        ("cpu_clock_hertz", "core", "Clock of a core.", board.clocks_mhz, 1e6),
        ("device_clock_hertz", "device", "Clock of a GPU or NPU.", board.devices_mhz, 1e6),
        ("device_load_ratio", "device", "How busy it is.", board.device_loads, 1.0),
        ("power_watts", "rail", "Power on a rail.", board.rails_w, 1.0),
    ):
        yield from family(
            f"edgekit_board_{name}",
            "gauge",
            text,
            [({label: key}, value * scale) for key, value in values.items()],
        )
    yield from family(
        "edgekit_board_energy_joules_total",
        "counter",
        "Energy taken, as the processor counts it; wraps.",
        [({"zone": zone}, value) for zone, value in board.energies_j.items()],
    )
    yield from family(
        "edgekit_board_throttle_events_total",
        "counter",
        "Throttling and over-current since the board started.",
        [({"event": event}, count) for event, count in board.events.items()],
    )
    if board != Board():
        yield from family(
            "edgekit_board_throttled",
            "gauge",
            "Whether heat, voltage or a limit slows the board down now.",
            [({}, int(bool(board.throttled)))],
        )


def _coarse(latency: Sequence[int]) -> list[int]:
    """Counts between every fourth edge, one more above the last of those."""
    # The first edge stands alone; four fine buckets follow up to each next one.
    starts = [0, *range(1, len(latency), _EDGE_STEP)]
    return [sum(latency[a:b]) for a, b in zip(starts, [*starts[1:], len(latency)], strict=True)]


def _sizes(now: Snapshot) -> list[int]:
    counts = [0] * (len(_BATCH_EDGES) + 1)
    for rows, (executions, *_) in now.batches.items():
        at = sum(rows > edge for edge in _BATCH_EDGES)
        counts[at] += executions
    return counts


def _cpu_s(pid: int) -> float:
    """User and system time of a process; 0 of one that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return 0.0
    fields = text.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
