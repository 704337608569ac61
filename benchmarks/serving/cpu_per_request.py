"""CPU per served request against running the same session in process, interleaved in one run.

    python -m benchmarks.serving.cpu_per_request --json out.json

Both are CPU seconds of one and the same process. Each round measures in process, then served; the
table shows medians over rounds. The load generator is another process, and where cores share caches
or a hyper-thread it makes each instruction of the server dearer: so while the model runs in
process, a spinning process takes the load generator's place.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from edgekit.bundle import Bundle
from tests import bundles

MODELS: dict[str, tuple[bytes, tuple[int, ...], int]] = {
    "mlp": (bundles.mlp((256, 256, 256, 10)), (1, 256), 4000),
    "convnet": (bundles.convnet(size=224, channels=28, layers=6), (1, 3, 224, 224), 100),
}


class Server:
    """The measured process."""

    def __init__(self, folders: list[Path]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.server", *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hello: dict[str, Any] = self._line()

    def cpu_s(self) -> float:
        return float(self._ask("cpu"))

    def run(self, model: str, count: int) -> float:
        return float(self._ask(f"run {model} {count}"))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def busy() -> Iterator[None]:
    """Keep one core busy from another process."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def load(port: int, model: str, *, connections: int, requests: int) -> list[float]:
    """Run the load generator; latencies in seconds, sorted."""
    shape = MODELS[model][1]
    command = [sys.executable, "-m", "benchmarks.serving.load", str(port), "--model", model]
    command += ["--connections", str(connections), "--requests", str(requests)]
    command += ["--shape", *map(str, shape)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    latencies: list[float] = json.loads(done.stdout)
    return latencies


def measure(server: Server, model: str, *, rounds: int, connections: int) -> dict[str, float]:
    """Medians over rounds for one model at one number of connections."""
    port, requests = server.hello["port"], MODELS[model][2]
    load(port, model, connections=connections, requests=requests // 4)
    inside, served, latencies = [], [], []
    for _ in range(rounds):
        with busy():
            inside.append(server.run(model, requests) / requests * 1e6)
        before = server.cpu_s()
        latencies += load(port, model, connections=connections, requests=requests)
        served.append((server.cpu_s() - before) / requests * 1e6)
    cuts = quantiles(latencies, n=100)
    return {
        "in_process_us": median(inside),
        "served_us": median(served),
        "ratio": median(s / i for s, i in zip(served, inside, strict=True)),
        "latency_p50_us": cuts[49] * 1e6,
        "latency_p99_us": cuts[98] * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = []
        for model, (raw, _, _) in MODELS.items():
            path = bundles.write(folder, name=model, model=raw)
            with Bundle.open(path) as packed:
                folders.append(packed.unpack(folder / model))
        server = Server(folders)
        results: dict[str, dict[str, float]] = {}
        for model in MODELS:
            for connections in (1, 8):
                found = measure(server, model, rounds=options.rounds, connections=connections)
                results[f"{model} c{connections}"] = found
        server.close()
    print(f"plans (inline, largest batch, us): {server.hello['plans']}")
    print(f"{'':14}{'in process':>12}{'served':>12}{'ratio':>8}{'p50':>10}{'p99':>10}")
    for label, row in results.items():
        print(
            f"{label:14}{row['in_process_us']:9.1f} us{row['served_us']:9.1f} us{row['ratio']:8.2f}"
            f"{row['latency_p50_us']:7.0f} us{row['latency_p99_us']:7.0f} us"
        )
    if options.json:
        options.json.write_text(json.dumps({"plans": server.hello["plans"], "results": results}))


if __name__ == "__main__":
    main()
