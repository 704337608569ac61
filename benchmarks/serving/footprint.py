"""What serving costs before the first request: CPU to start, memory of an idle server, CPU of help.

    python -m benchmarks.serving.footprint --json out.json

Each figure is the median of several fresh processes. Cold start is the CPU of `edgekit run` until
it says that it listens, less the CPU of a process that only imports the engine and opens the model.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.process import cpu_s, pss_mb, tell
from tests import bundles

IDLE = """
import asyncio, sys
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server, new_event_loop
import edgekit_runtime.commands

async def main():
    await Server(Models(), listen=[Tcp("127.0.0.1", 0)]).start()
    print("ready", flush=True)
    await asyncio.Event().wait()

new_event_loop().run_until_complete(main())
"""
ENGINE = """
import sys
from pathlib import Path
from edgekit_runtime.engines import ENGINES
ENGINES.get("onnxruntime").open(Path(sys.argv[1]), options={})
"""


def cpu_of(command: list[str], *, until_line: bool) -> float:
    """CPU seconds of a process, to its end or to its first line, which ends it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if until_line:
            process.stdout.readline()
            spent = cpu_s(process.pid)
            process.send_signal(signal.SIGKILL)
            return spent
        process.stdout.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def idle_pss_mb() -> float:
    """PSS of a server that serves nothing yet."""
    command = [sys.executable, "-c", IDLE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        size_mb = pss_mb(process.pid)
        process.kill()
    return size_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        model = bundles.convnet(size=224, channels=28, layers=6)
        (folder / "model.onnx").write_bytes(model)
        bundle = bundles.write(folder, model=model)
        run = [sys.executable, "-m", "edgekit", "run", str(bundle), "--insecure", "--json"]
        run += ["--listen", "127.0.0.1:0"]
        engine = [sys.executable, "-c", ENGINE, str(folder / "model.onnx")]
        help_ = [sys.executable, "-m", "edgekit", "--help"]
        starts, engines, helps, idle = [], [], [], []
        for _ in range(options.repeats):
            starts.append(cpu_of(run, until_line=True))
            engines.append(cpu_of(engine, until_line=False))
            helps.append(cpu_of(help_, until_line=False))
            idle.append(idle_pss_mb())
    figures = {
        "run_cpu_s": median(starts),
        "engine_import_and_load_cpu_s": median(engines),
        "cold_start_beyond_engine_cpu_s": median(starts) - median(engines),
        "help_cpu_s": median(helps),
        "idle_pss_mb": median(idle),
    }
    tell(figures, file=options.json)


if __name__ == "__main__":
    main()
