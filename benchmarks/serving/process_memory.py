"""What models in processes of their own hold, and what loading and unloading leaves behind.

    python -m benchmarks.serving.process_memory --json out.json

Memory is proportional set size, of server and worker: with one convnet that was asked for eight
samples at a time; when nobody has asked for some seconds; and after one more sample then, with
which the worker gives back what eight samples took. A cycle loads a
model beside the one that is served, and unloads it. What it costs to learn that a block of the
arena is free is told beside what a finalizer would cost. CPU is in `cpu_per_request`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from timeit import repeat
from typing import Any

import numpy as np

from benchmarks.process import pss_mb, tell
from edgekit.bundle import Bundle
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.process.arena import Arena, Block
from edgekit_runtime.serving.process.memory import own_bytes
from edgekit_runtime.serving.process.runner import ProcessRunner
from edgekit_runtime.serving.server import Server, new_event_loop
from edgekit_runtime.serving.settings import Settings

SAMPLES = (8, 3, 224, 224)
# After so many cycles all that is made once was made.
WARM_CYCLES = 50
IDLE_S = 7.0


async def serve(folder: Path, cycled: Path) -> None:
    """The server that is measured: answers each line with its figures, in JSON."""
    models = Models(Settings(workers="process"))
    server = Server(models, listen=[Tcp("127.0.0.1", 0)])
    await server.start()
    loop = asyncio.get_running_loop()
    with Bundle.open(folder) as bundle:
        served = await loop.run_in_executor(None, lambda: models.load(bundle, verified_by=None))
    models.activate(served)
    # As `edgekit run` does.
    gc.collect()
    gc.freeze()
    print(json.dumps(str(server.addresses[0])), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await loop.run_in_executor(None, cycle, models, cycled, int(line))
        runner = served.default.opened.runner
        assert isinstance(runner, ProcessRunner)
        figures = {
            "server_mb": pss_mb(os.getpid()),
            "server_own_mb": own_bytes(os.getpid()) / (1 << 20),
            "worker_mb": pss_mb(runner.pid),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "imports_engine": "onnxruntime" in sys.modules,
        }
        print(json.dumps(figures), flush=True)
    await server.close()
    models.close()


def cycle(models: Models, folder: Path, times: int) -> None:
    """Load and unload a model."""
    for _ in range(times):
        with Bundle.open(folder) as bundle:
            served = models.load(bundle, verified_by=None)
        models.activate(served)
        models.remove(served.name, served.version)
        if not served.wait_closed(30):
            raise SystemExit("a model does not close")


class Measured:
    """The server as a process."""

    def __init__(self, folder: Path, cycled: Path) -> None:
        module = "benchmarks.serving.process_memory"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--serve", str(folder), str(cycled)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._line()

    def after(self, cycles: int = 0) -> dict[str, Any]:
        """Its figures after so many cycles."""
        assert self._process.stdin is not None
        print(cycles, file=self._process.stdin, flush=True)
        figures: dict[str, Any] = self._line()
        return figures

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def memory(convnet: Path, mlp: Path, eight: bytes, one: bytes) -> dict[str, Any]:
    """Server and worker after requests of eight samples, when idle, and after one sample more."""
    from edgekit_runtime.capacity.generators import Generators

    server = Measured(convnet, mlp)
    with Generators(server.address) as generators:

        def ask(message: bytes, duration_s: float) -> dict[str, Any]:
            messages = generators.messages([message])
            seen = generators.closed_loop(messages, connections=1, duration_s=duration_s)
            if seen.failed:
                raise SystemExit(f"{seen.failed} requests failed: {seen.statuses}")
            return server.after()

        used = ask(eight, 3)
        time.sleep(IDLE_S)
        idle = server.after()
        rested = ask(one, 0.01)
    server.close()
    return {
        "server_imports_engine": used["imports_engine"],
        "used_server_pss_mb": used["server_mb"],
        "used_worker_pss_mb": used["worker_mb"],
        "used_pss_mb": used["server_mb"] + used["worker_mb"],
        "idle_pss_mb": idle["server_mb"] + idle["worker_mb"],
        "rested_pss_mb": rested["server_mb"] + rested["worker_mb"],
    }


def cycles(convnet: Path, mlp: Path, count: int) -> dict[str, Any]:
    """What loading and unloading a second model leaves behind in the server."""
    server = Measured(convnet, mlp)
    before = server.after(WARM_CYCLES)
    after = server.after(count)
    server.close()
    return {
        "cycles": count,
        "cycles_server_pss_mb": before["server_mb"],
        "cycles_server_pss_growth_mb": after["server_mb"] - before["server_mb"],
        # Without libraries, whose share falls when another process uses them, too.
        "cycles_server_own_growth_mb": after["server_own_mb"] - before["server_own_mb"],
        "cycles_descriptors_growth": after["descriptors"] - before["descriptors"],
    }


def frees() -> dict[str, float]:
    """What it costs to hand out a block and to learn that it is free."""
    arena, freed = Arena(1 << 20), deque[int]()

    class Plain(np.ndarray[Any, np.dtype[np.uint8]]):
        pass

    def told_by_del() -> None:
        block = np.ndarray.__new__(Block, (4096,), np.uint8, arena.memory, 0)
        block.give_back = freed.append

    def told_by_finalizer() -> None:
        plain = np.ndarray.__new__(Plain, (4096,), np.uint8, arena.memory, 0)
        weakref.finalize(plain, freed.append, 0)

    def fastest_us(call: Callable[[], object]) -> float:
        return min(repeat(call, number=2000, repeat=9)) / 2000 * 1e6

    return {
        "block_taken_and_freed_us": fastest_us(lambda: arena.take(4096)),
        "end_told_by_del_us": fastest_us(told_by_del),
        "end_told_by_finalizer_us": fastest_us(told_by_finalizer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        new_event_loop().run_until_complete(serve(*options.serve))
        return
    # Not above: the server that is measured must not import them.
    from benchmarks.serving import subject
    from edgekit_runtime.capacity import wire
    from tests import bundles

    with tempfile.TemporaryDirectory() as name:
        mlp, convnet = subject.write(Path(name), ("mlp", "convnet"))
        samples = bundles.samples(SAMPLES[0], SAMPLES[1:])
        eight, one = (wire.request("convnet", {"x": samples[:rows]}) for rows in (8, 1))
        figures: dict[str, Any] = {**frees(), **memory(convnet, mlp, eight, one)}
        if options.cycles:
            figures |= cycles(convnet, mlp, options.cycles)
    tell(figures, file=options.json)


if __name__ == "__main__":
    main()
