"""Shared memory and doorbell against running the same session in process, interleaved in one run.

    python -m benchmarks.serving.doorbell --json out.json

The server is one process, the programs that ask are another; CPU is the server's alone. Each round
measures in process, then served; the table shows medians over rounds. While the model runs in
process, a spinning process takes the place of the programs, because cores share caches. `added` is
the mean latency of a round's requests less the mean time that the engine took for these very
requests, so that a machine that becomes slower or faster meanwhile does not count; it is told for
one request at a time, because others wait for each other.

With one program and nothing else to do, a core sleeps between two requests, and on a virtual
machine waking it costs the one who wakes it tens of microseconds: `awake` keeps both cores awake by
processes of the lowest priority, which is what a board with other work looks like.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.serving.subject import MODELS, busy
from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit_runtime.client import Client
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.opener import open_variant
from edgekit_runtime.serving.server import Server, new_event_loop
from tests import bundles

# Model, rows, models that one program has open, requests in a round.
CASES = (
    ("mlp", 1, 1, 4000),
    ("mlp", 1, 8, 8000),
    ("mlp", 32, 1, 2000),
    ("mlp", 32, 8, 4000),
    ("convnet", 1, 1, 100),
    ("convnet", 1, 8, 200),
)


async def serve(path: Path, folders: Sequence[Bundle]) -> None:
    """The measured process: answers each line on standard input with one of JSON."""
    models = Models()
    direct = {}
    for bundle in folders:
        served = models.load(bundle, verified_by=None)
        models.activate(served)
        session = open_variant(bundle, served.variant)
        sample = {name: array[:1] for name, array in bundle.tensors(GOLDEN_INPUTS).items()}
        direct[served.name] = session, sample
    server = Server(models, listen=[], bell=path)
    await server.start()
    # As `edgekit run` does.
    gc.collect()
    gc.freeze()
    print(json.dumps({m.name: [m.plan.place, m.plan.max_batch] for m in models.served()}))
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name, *numbers = line.split()
        if not numbers:
            found = time.process_time(), models.find(name).snapshot().run_ns / 1e9
        else:
            rows, count = map(int, numbers)
            session, sample = direct[name]
            inputs = {key: np.repeat(array, rows, axis=0) for key, array in sample.items()}
            start = time.process_time()
            for _ in range(count):
                session.run(inputs)
            found = time.process_time() - start, 0.0
        print(json.dumps(found), flush=True)
    await server.close()


def ask(path: Path, name: str, rows: int, connections: int, requests: int) -> list[float]:
    """A program with requests to a model under way; latencies in seconds."""
    latencies = []
    with Client(path) as client:
        models = [client.open(name, rows=rows) for _ in range(connections)]
        for model in models:
            model.inputs["x"][:] = bundles.samples(rows, MODELS[name][1][1:])
        began = [0.0] * connections
        for sent in range(requests + connections):
            at = sent % connections
            slot = models[at].slots[0]
            if sent >= connections:
                slot.wait()
                latencies.append(time.perf_counter() - began[at])
            if sent < requests:
                began[at] = time.perf_counter()
                slot.start()
    return latencies


class Measured:
    """The server's process."""

    def __init__(self, path: Path, folders: Sequence[Path]) -> None:
        command = [sys.executable, "-m", "benchmarks.serving.doorbell", "--serve", str(path)]
        self._process = subprocess.Popen(
            [*command, *map(str, folders)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.plans = self._line()

    def ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._line()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def awake() -> Iterator[None]:
    """Keep both cores from sleeping, without taking them from anybody."""
    command = ["nice", "-n", "19", sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(command) for _ in range(2)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def measure(
    server: Measured, path: Path, case: tuple[str, int, int, int], *, rounds: int, is_awake: bool
) -> dict[str, float]:
    """Medians over rounds."""
    name, rows, connections, requests = case
    program = [sys.executable, "-m", "benchmarks.serving.doorbell", "--ask", str(path), name]
    program += [str(rows), str(connections), str(requests)]
    inside, served, latency_us, added_us = [], [], [], []
    with ExitStack() as stack:
        if is_awake:
            stack.enter_context(awake())
        for number in range(rounds + 1):
            with busy():
                cpu_s, _ = server.ask(f"{name} {rows} {requests}")
            cpu_before_s, run_before_s = server.ask(name)
            done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
            cpu_after_s, run_after_s = server.ask(name)
            if number:  # the first is for warming up
                inside.append(cpu_s / requests * 1e6)
                served.append((cpu_after_s - cpu_before_s) / requests * 1e6)
                mean_us, median_us = (latency * 1e6 for latency in json.loads(done.stdout))
                latency_us.append(median_us)
                added_us.append(mean_us - (run_after_s - run_before_s) / requests * 1e6)
    return {
        "in_process_us": median(inside),
        "served_us": median(served),
        "ratio": median(s / i for s, i in zip(served, inside, strict=True)),
        "latency_p50_us": median(latency_us),
        **({"added_us": median(added_us)} if connections == 1 else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=sorted(MODELS), help="measure this one alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs="+", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        path, *folders = options.serve
        new_event_loop().run_until_complete(serve(path, [Bundle.open(name) for name in folders]))
    elif options.ask:
        path, name, rows, connections, requests = options.ask
        latencies = ask(Path(path), name, int(rows), int(connections), int(requests))
        print(json.dumps([fmean(latencies), median(latencies)]))
    else:
        cases = [case for case in CASES if options.model in (None, case[0])]
        compare(cases, rounds=options.rounds, file=options.json)


def compare(cases: Sequence[tuple[str, int, int, int]], *, rounds: int, file: Path | None) -> None:
    """Measure every case and tell."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folders = []
        for model, (raw, _, _) in MODELS.items():
            with Bundle.open(bundles.write(folder, name=model, model=raw)) as packed:
                folders.append(packed.unpack(folder / model).resolve())
        path = folder / "bell.sock"
        server = Measured(path, folders)
        print(f"plans (place, largest batch): {server.plans}")
        print(f"{'':28}{'in process':>13}{'served':>13}{'ratio':>8}{'p50':>11}{'added':>11}")
        results = {}
        for case in cases:
            for is_awake in (False, True):
                found = measure(server, path, case, rounds=rounds, is_awake=is_awake)
                name, rows, connections, _ = case
                label = f"{name} rows {rows} c{connections}{' awake' if is_awake else ''}"
                results[label] = found
                added = f"{found['added_us']:8.0f} us" if "added_us" in found else ""
                print(
                    f"{label:28}{found['in_process_us']:10.1f} us{found['served_us']:10.1f} us"
                    f"{found['ratio']:8.2f}{found['latency_p50_us']:8.0f} us{added}",
                    flush=True,
                )
        server.close()
    if file is not None:
        file.write_text(json.dumps({"plans": server.plans, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
