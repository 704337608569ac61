"""CPU per served request against running the same session in process, interleaved in one run.

    python -m benchmarks.serving.cpu_per_request --json out.json

Both are CPU seconds of the same process, its worker processes included. Each round measures in
process, then served; the table shows medians over rounds. The load generator is another process,
and where cores share caches or a hyper-thread it makes each instruction of the server dearer: so
while the model runs in process, a spinning process takes the load generator's place. What serving
adds to the latency is told at one connection, at the median.
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
from benchmarks.serving.subject import MEASURED, MODELS, Server
from edgekit_runtime.capacity.generators import Generators

CONNECTIONS = (1, 8)
MODES = ("auto", "loop", "thread", "process")


def measure(
    server: Server, model: str, *, rounds: int, connections: int, seconds: float
) -> dict[str, float | None]:
    """Medians over rounds for one model at one number of connections."""
    runs = MODELS[model][2]
    inside, alone_us, served, latencies_us = [], [], [], []
    with Generators(server.address) as generators:
        messages = subject.messages(generators, model)
        generators.closed_loop(messages, connections=connections, duration_s=seconds / 4)
        for _ in range(rounds):
            with subject.busy():
                ran = server.run(model, runs)
            inside.append(ran["cpu_s"] / runs * 1e6)
            # A latency is what it is with nobody beside.
            alone_us.append(server.run(model, runs // 4)["p50_us"])
            before = server.cpu_s()
            seen = generators.closed_loop(messages, connections=connections, duration_s=seconds)
            if seen.failed:
                raise SystemExit(f"{seen.failed} requests failed: {seen.statuses}")
            served.append((server.cpu_s() - before) / len(seen.latencies_ns) * 1e6)
            latencies_us.append(np.percentile(seen.latencies_ns, (50, 99)) / 1e3)
    p50_us, p99_us = (float(value) for value in np.median(latencies_us, axis=0))
    return {
        "in_process_us": median(inside),
        "served_us": median(served),
        "ratio": median(s / i for s, i in zip(served, inside, strict=True)),
        "latency_p50_us": p50_us,
        "latency_p99_us": p99_us,
        "latency_added_p50_us": p50_us - median(alone_us) if connections == 1 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one loop")
    parser.add_argument("--workers", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, float | None]] = {}
    plans: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folders = subject.write(Path(name))
        for mode in options.workers:
            with Server(folders, workers=mode) as server:
                plans[mode] = server.hello["plans"]
                for model in MEASURED:
                    for connections in CONNECTIONS:
                        results[f"{model} {mode} c{connections}"] = measure(
                            server,
                            model,
                            rounds=options.rounds,
                            connections=connections,
                            seconds=options.seconds,
                        )
    print(f"plans (place, largest batch, us): {plans}")
    print(f"{'':20}{'in process':>12}{'served':>12}{'ratio':>8}{'p50':>10}{'p99':>10}{'added':>10}")
    for label, row in results.items():
        print(
            f"{label:20}{row['in_process_us']:9.1f} us{row['served_us']:9.1f} us{row['ratio']:8.2f}"
            f"{row['latency_p50_us']:7.0f} us{row['latency_p99_us']:7.0f} us"
            + (f"{added:7.0f} us" if (added := row["latency_added_p50_us"]) is not None else "")
        )
    if options.json:
        options.json.write_text(json.dumps({"plans": plans, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
