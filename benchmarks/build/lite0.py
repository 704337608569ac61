"""Build EfficientNet-Lite0 for this machine with real photographs: seconds, speed-up, agreement.

Run: python -m benchmarks.build.lite0 [--crops 30] [--json FILE]

The build runs as a user starts it, in a process of its own. Figures to reach: at most 120 s, at
least 2.0 times as fast as float on a CPU with VNNI, at least .85 of the answers the same on at
least 400 crops. Intervals are over photographs, not crops. Latency is taken side by side with the
float model, but a machine with other work still shifts it: read the load average beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.process import tell
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos

START = "from edgekit.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--crops", type=int, default=30, help="crops of each of 20 photographs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), crops=arguments.crops)
    tell(figures, file=arguments.json)


def measure(folder: Path, *, crops: int) -> dict[str, Any]:
    """One build in `folder`, and its figures by name."""
    model = folder / "lite0.onnx"
    write_lite0(model)
    data = write_photos(folder, crops=crops)
    load = os.getloadavg()[0]
    started = time.monotonic()
    command = [
        *(
            sys.executable,
            "-c",
            START,
            "build",
            str(model),
            "--profile",
            f"generic-{platform.machine()}",
        ),
        *("--data", str(data), "--out", str(folder), "--json"),
    ]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds = time.monotonic() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    (found,) = json.loads(run.stdout)["bundles"]
    best = found["variants"][0]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": usage.ru_maxrss // 1024,
        "variant": f"{best['name']} ({best['scheme']})",
        "speedup": round(best["speedup"], 2),
        "speedup_quartiles": [round(end, 2) for end in best["speedup_quartiles"]],
        "agreement": round(best["agreement"], 4),
        "agreement_ci95": [round(end, 4) for end in best["agreement_ci95"]],
        "samples": found["data"]["evaluation"],
        "size_mb": round(best["size_bytes"] / 1e6, 2),
        "float_size_mb": round(found["variants"][-1]["size_bytes"] / 1e6, 2),
        "load_before": round(load, 2),
        "measured_on": found["measured_on"],
    }


if __name__ == "__main__":
    main()
