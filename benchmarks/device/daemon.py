"""What `edgekitd` costs a board before it serves anything: CPU to start, memory when idle.

    python -m benchmarks.device.daemon [--repeats 5] [--json FILE]

The daemon is configured for a fleet and connected to a real broker; it holds no model, so it has
imported no engine. CPU is taken when its server answers, PSS five seconds later. PSS counts pages
that other Python processes share by share, so it is taken with few of them around.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.process import cpu_s, pss_mb, tell
from edgekit import signing
from tests.system.daemons import EdgeDaemon, broker, wait_for

SETTLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    starts, sizes = [], []
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as name:
            start_s, size_mb = measure(Path(name))
        starts.append(start_s)
        sizes.append(size_mb)
    figures = {"cold_start_cpu_s": median(starts), "idle_pss_mb": median(sizes)}
    tell(figures, file=given.json)


def measure(folder: Path) -> tuple[float, float]:
    """CPU seconds until the server answers, and PSS in MB when idle."""
    _, public = signing.new_pair(folder / "keys")
    with broker(folder) as port:
        daemon = EdgeDaemon(folder, trust=public, broker_port=port)
        daemon.start()
        assert daemon.process is not None
        try:
            wait_for(lambda: daemon.get("/v2") is not None, "the daemon's server")
            spent = cpu_s(daemon.process.pid)
            time.sleep(SETTLE_S)
            return spent, pss_mb(daemon.process.pid)
        finally:
            daemon.stop()


if __name__ == "__main__":
    main()
