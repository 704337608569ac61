"""What serving costs a board in memory and at its start: idle, in use, and to the first answer.

    python -m benchmarks.serving.footprint --json out.json

Each figure is the median of several fresh processes, over the whole process tree. Cold start is the
CPU of `edgekit run` until it has answered a request, less the CPU of a process that only imports
the engine, opens the model and runs it once. PSS counts shared pages by share, so it is taken with
few other Python processes around.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.process import tell
from benchmarks.serving import holdings, subject
from benchmarks.serving.subject import MODELS
from edgekit_runtime.capacity import resources, wire
from edgekit_runtime.capacity.generators import Generators
from edgekit_runtime.capacity.target import started
from tests import bundles

MODEL = "convnet"
BATCH = 8
MODES = ("thread", "process")
IDLE = """
import asyncio, sys
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server, new_event_loop
import edgekit_runtime.run_command

async def main():
    await Server(Models(), listen=[Tcp("127.0.0.1", 0)]).start()
    print("ready", flush=True)
    await asyncio.Event().wait()

new_event_loop().run_until_complete(main())
"""
ENGINE = """
import sys
from pathlib import Path
import numpy as np
from edgekit_runtime.engines import ENGINES
session = ENGINES.get("onnxruntime").open(Path(sys.argv[1]), options={})
session.run({"x": np.zeros(tuple(map(int, sys.argv[2:])), dtype=np.float32)})
"""


def cpu_of(command: list[str]) -> float:
    """CPU seconds of a process, to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def idle_pss_mb() -> float:
    """PSS of a server that serves nothing yet."""
    command = [sys.executable, "-c", IDLE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        size_mb = holdings.settled(process.pid)["pss_mb"]
        process.kill()
    return size_mb


def served(bundle: Path, *, workers: str) -> tuple[float, float]:
    """CPU seconds to the first answer, and PSS in MB after requests of a batch of 8."""
    shape = MODELS[MODEL][1]
    words = ["--insecure", "--listen", "127.0.0.1:0", "--workers", workers]
    with started(bundle, words) as target, Generators(target.address, connections=1) as driving:
        assert target.pid is not None
        one = driving.messages([subject.request(MODEL)])
        driving.closed_loop(one, connections=1, duration_s=0.001)
        spent_s = sum(resources.read([target.pid]).threads_s.values())
        array = bundles.samples(BATCH, shape[1:])
        many = driving.messages([wire.request(MODEL, {"x": array})])
        driving.closed_loop(many, connections=1, duration_s=1.0)
        return spent_s, holdings.settled(target.pid)["pss_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        raw, shape, _ = MODELS[MODEL]
        (folder / "model.onnx").write_bytes(raw)
        bundle = bundles.write(folder, name=MODEL, model=raw)
        engine = [sys.executable, "-c", ENGINE, str(folder / "model.onnx"), *map(str, shape)]
        for _ in range(options.repeats):
            engine_s = cpu_of(engine)
            note("engine_import_load_and_run_cpu_s", engine_s)
            note("help_cpu_s", cpu_of([sys.executable, "-m", "edgekit", "--help"]))
            note("idle_pss_mb", idle_pss_mb())
            for workers in MODES:
                spent_s, size_mb = served(bundle, workers=workers)
                note(f"{workers}_first_answer_beyond_engine_cpu_s", spent_s - engine_s)
                note(f"{workers}_batch_8_pss_mb", size_mb)
    tell({name: median(values) for name, values in found.items()}, file=options.json)


if __name__ == "__main__":
    main()
