"""Run every benchmark and write what they found to one file: `python -m benchmarks [NAME…]`.

Figures are ratios or CPU seconds wherever that is possible, because machines differ and are shared.
Run this on a machine with nothing else to do; the load average is kept beside the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SCRIPTS = (
    "build.lite0",
    "targets.eight",
    "serving.footprint",
    "serving.cpu_per_request",
    "serving.doorbell",
    "serving.overload",
    "serving.ladder",
    "serving.swaps",
    "serving.cycles",
    "serving.soak",
    "serving.loadgen",
    "serving.peers.compare",
    "serving.drift",
    "device.daemon",
    "device.delta",
    "device.canary",
    "device.tuf_refresh",
    "device.link",
    "device.telemetry_bytes",
    "device.flash_writes",
    "device.update_kills",
    "device.mixed_kills",
    "fleet.ingest",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(SCRIPTS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"))
    given = parser.parse_args()
    if unknown := set(given.names) - set(SCRIPTS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {"machine": machine()}
    for name in given.names or SCRIPTS:
        print(f"\n{name}")
        found[name] = {"load_before": round(os.getloadavg()[0], 2), **run(name)}
        given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"\nwritten to {given.out}")


def run(name: str) -> dict[str, Any]:
    """The figures of one script, which prints its own table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
        subprocess.run(command, check=True)
        figures: dict[str, Any] = json.loads(file.read_bytes())
    return figures


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if line.startswith(("model name", "CPU part"))
        ),
        platform.machine(),
    )
    return {
        "architecture": platform.machine(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
