"""The server that is measured: serves the unpacked bundles it is given and prints where.

For each line on its standard input it answers with one line of JSON. `cpu` gives the CPU seconds
that it and its worker processes have used; `run MODEL N` runs the model N times in process, which
is what served is compared to, and gives its CPU seconds and the median of single runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit_runtime.capacity.resources import descendants
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.engines.batches import iter_batches
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.opener import open_variant
from edgekit_runtime.serving.server import Server, new_event_loop
from edgekit_runtime.serving.settings import Settings


def tree_cpu_s() -> float:
    """CPU seconds of this process and of those that it started, to the nanosecond."""
    return sum(time.clock_gettime(_clock(pid)) for pid in descendants([os.getpid()]))


def _clock(pid: int) -> int:
    """The CPU clock of a process, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2


async def serve(models: Models, direct: dict[str, tuple[Session, Tensors]]) -> None:
    server = Server(models, listen=[Tcp("127.0.0.1", 0)])
    await server.start()
    # As `edgekit run` does.
    gc.collect()
    gc.freeze()
    plans = {m.name: [m.plan.place, m.plan.max_batch, m.plan.cost_us] for m in models.served()}
    print(json.dumps({"address": str(server.addresses[0]), "plans": plans}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        words = line.split()
        answer: Any = tree_cpu_s()
        if words[0] == "run":
            answer = _run(*direct[words[1]], count=int(words[2]))
        print(json.dumps(answer), flush=True)
    await server.close()


def _run(session: Session, inputs: Tensors, *, count: int) -> dict[str, float]:
    took_ns = []
    start = time.process_time()
    for _ in range(count):
        began = time.perf_counter_ns()
        session.run(inputs)
        took_ns.append(time.perf_counter_ns() - began)
    return {"cpu_s": time.process_time() - start, "p50_us": median(took_ns) / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--queue", type=int, default=64)
    given = parser.parse_args()
    models = Models(Settings(workers=given.workers, queue_limit=given.queue))
    direct: dict[str, tuple[Session, Tensors]] = {}
    for folder in given.folders:
        with Bundle.open(folder) as bundle:
            served = models.load(bundle, verified_by=None)
            models.activate(served)
            session = open_variant(bundle, served.variant)
            samples = bundle.tensors(GOLDEN_INPUTS)
            inputs = next(iter_batches(session.inputs, samples, size=1))
            direct[served.name] = session, inputs
    loop = new_event_loop()
    try:
        loop.run_until_complete(serve(models, direct))
    finally:
        models.close()
        loop.close()


if __name__ == "__main__":
    main()
