"""One download by the daemon's own `Fetcher`, as a process: `link` measures and kills it.

python -m benchmarks.device.link_client URL SHA256 SIZE_BYTES FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from threading import Event

from edgekit.clock import SystemClock
from edgekit.messages import Wanted
from edgekit_runtime.fetch import Fetcher

LIMIT_S = 3600.0


def main(url: str, sha256: str, size_bytes: int, folder: Path) -> None:
    wanted = Wanted(
        version="1.0.0",
        digest="sha256:" + "0" * 64,
        url=url,
        sha256=sha256,
        size_bytes=size_bytes,
    )
    fetcher = Fetcher(
        folder, repository=url, reserve_bytes=1 << 20, clock=SystemClock(), rng=Random()
    )
    fetcher.fetch(wanted, limit_s=LIMIT_S, progress=lambda _: None, wait=Event().wait)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
