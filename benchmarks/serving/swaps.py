"""A hundred swaps under load: does any request fail?

    python -m benchmarks.serving.swaps --swaps 100 --json out.json

The server runs in this process, as a daemon's does; another process sends requests open loop and
never stops. Each swap opens, probes and measures the other version, makes it visible and lets the
old one finish.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.subject import MODELS
from edgekit.bundle import Bundle
from edgekit_runtime.capacity import arrivals, slo, wire
from edgekit_runtime.capacity.generators import Generators, Load
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server, new_event_loop
from edgekit_runtime.serving.settings import Settings
from tests import bundles


class Swapper(threading.Thread):
    """Swaps two versions back and forth, and notes what each swap took.

    Attributes:
        took_s: of each swap, from the decision to the new version visible.
        failure: what ended it early.
    """

    def __init__(self, models: Models, versions: Sequence[Bundle], *, swaps: int) -> None:
        super().__init__(name="swapper")
        self._models = models
        self._versions = versions
        self._swaps = swaps
        self.took_s: list[float] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for number in range(1, self._swaps + 1):
                began = time.monotonic()
                bundle = self._versions[number % len(self._versions)]
                old = self._models.find(bundle.manifest.name)
                served = self._models.load(bundle, verified_by=None)
                self._models.activate(served, replace=True)
                self.took_s.append(time.monotonic() - began)
                if not old.wait_closed(30):
                    raise TimeoutError(f"version {old.version} does not close")
        except BaseException as e:  # noqa: BLE001 - told by the main thread
            self.failure = e


def drive(models: Models, versions: Sequence[Bundle], *, swaps: int, rate: float) -> dict[str, Any]:
    """Send requests until all swaps are done."""
    loop = new_event_loop()
    server = Server(models, listen=[Tcp("127.0.0.1", 0)])
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()
    random = np.random.default_rng(0)
    seen: list[Load] = []
    swapper = Swapper(models, versions, swaps=swaps)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        models.activate(models.load(versions[0], verified_by=None))
        array = bundles.samples(1, versions[0].manifest.model.inputs[0].shape[1:])
        with Generators(str(server.addresses[0])) as generators:
            messages = generators.messages([wire.request("m", {"x": array})])
            swapper.start()
            while swapper.is_alive():
                due = arrivals.poisson(rate, 1.0, random=random)
                seen.append(generators.open_loop(messages, due, patience_s=10.0))
    finally:
        asyncio.run_coroutine_threadsafe(server.close(timeout_s=2), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        models.close()
        loop.close()
    if swapper.failure is not None:
        raise swapper.failure
    latencies = np.concatenate([one.latencies_ns for one in seen])
    return {
        "swaps": len(swapper.took_s),
        "swap_s": float(np.median(swapper.took_s)),
        "requests": sum(one.requests for one in seen),
        "failed": sum(one.failed for one in seen),
        "statuses": {str(s): n for one in seen for s, n in one.statuses.items()},
        "latency_ms": slo.percentiles_ms(latencies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--model", default="mlp", choices=list(MODELS))
    parser.add_argument("--workers", nargs="+", default=["loop", "thread", "process"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = {}
    for workers in given.workers:
        with tempfile.TemporaryDirectory() as name:
            raw = MODELS[given.model][0]
            versions = [
                bundles.unpacked(Path(name), name="m", version=version, model=raw)
                for version in ("1.0.0", "1.1.0")
            ]
            models = Models(Settings(workers=workers))
            results[workers] = drive(models, versions, swaps=given.swaps, rate=given.rate)
        print(f"{workers}: {results[workers]}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
