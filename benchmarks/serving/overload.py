"""Goodput under too much load: answers within their deadline at 1, 2 and 3 times the peak.

    python -m benchmarks.serving.overload --json out.json

The peak is what callers who wait for their answers get. Then requests arrive open loop (Poisson) at
multiples of it, each carrying its deadline; an answer counts if it came in time, from the moment
the request was due. To refuse a request costs the server tens of microseconds, so a model that
costs no more cannot keep its goodput at any multiple: these two are dearer. Rounds are interleaved;
the table shows medians. Where the generator was late itself, goodput is worse than the server's,
never better: `generator_busy_share` and `late_p99_ms` tell.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serving import subject
from benchmarks.serving.subject import Server
from edgekit_runtime.capacity import arrivals
from edgekit_runtime.capacity.generators import Generators, Load

MULTIPLES = (1.0, 2.0, 3.0)
CASES = (("middle", 50), ("convnet", 100))  # model, deadline in milliseconds
CALLERS = 16
# More than a full queue of the server, so that it is the server that refuses.
CONNECTIONS = 512


def good_per_s(seen: Load, *, deadline_ms: float, seconds: float) -> float:
    """Answers in time, a second of the time in which requests were due."""
    return float(np.count_nonzero(seen.latencies_ns <= deadline_ms * 1e6)) / seconds


def measure(
    server: Server, model: str, *, deadline_ms: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Medians over rounds for one model."""
    random = np.random.default_rng(0)
    peaks: list[float] = []
    found: dict[float, list[dict[str, float]]] = {multiple: [] for multiple in MULTIPLES}
    with Generators(server.address, connections=CONNECTIONS) as generators:
        plain = subject.messages(generators, model)
        timed = subject.messages(generators, model, timeout_us=deadline_ms * 1000)
        generators.closed_loop(plain, connections=CALLERS, duration_s=seconds / 2)
        for _ in range(rounds):
            closed = generators.closed_loop(plain, connections=CALLERS, duration_s=seconds)
            peaks.append(closed.answered_per_s)
            for multiple in MULTIPLES:
                due = arrivals.poisson(multiple * peaks[-1], seconds, random=random)
                seen = generators.open_loop(timed, due, patience_s=1.0)
                good = good_per_s(seen, deadline_ms=deadline_ms, seconds=seconds)
                found[multiple].append(
                    {
                        "offered_per_s": len(due) / seconds,
                        "good_per_s": good,
                        "of_peak": good / peaks[-1],
                        "refused_share": seen.statuses.get(429, 0) / max(1, seen.requests),
                        "missed_share": seen.statuses.get(504, 0) / max(1, seen.requests),
                        "generator_busy_share": seen.busy_share,
                        "late_p99_ms": float(np.percentile(seen.late_ns, 99)) / 1e6,
                    }
                )
    return {
        "deadline_ms": deadline_ms,
        "peak_per_s": median(peaks),
        "loads": {
            f"{multiple:g}x": {key: median(one[key] for one in rows) for key in rows[0]}
            for multiple, rows in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one run")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folders = subject.write(Path(name), [model for model, _ in CASES])
        with Server(folders, workers=given.workers) as server:
            for model, deadline_ms in CASES:
                results[model] = measure(
                    server,
                    model,
                    deadline_ms=deadline_ms,
                    rounds=given.rounds,
                    seconds=given.seconds,
                )
    for model, found in results.items():
        print(f"{model}, deadline {found['deadline_ms']} ms, peak {found['peak_per_s']:.0f}/s")
        for load, row in found["loads"].items():
            print(
                f"  {load:4} offered {row['offered_per_s']:8.0f}/s  good {row['good_per_s']:8.0f}/s"
                f"  of peak {row['of_peak']:6.1%}  429 {row['refused_share']:6.1%}"
                f"  504 {row['missed_share']:6.1%}  generator {row['generator_busy_share']:.2f}"
            )
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
