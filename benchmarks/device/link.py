"""What an update costs on a link that breaks: bytes on the wire over bytes of the bundle.

    python -m benchmarks.device.link [--rate BYTES_S] [--breaks 10] [--json FILE]

A real bundle behind a real static server (starlette on uvicorn), behind `tests.faults.LinkProxy` at
1 Mbit/s, which resets the connection each time that a further share of the bundle has come over, and
once more with a process that is killed (`kill -9`) at the same places instead. The proxy counts what
it delivered, heads of answers with it. `curl -C -` in a loop and `wget -c` do the same beside it,
where they are installed. The link is simulated on one machine: no packet is lost, TCP and IP heads
do not count.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from benchmarks.process import tell
from edgekit.bundle import Described, describe
from tests import bundles
from tests.faults import Conditions, LinkProxy

Client = Callable[[str, Path], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=125_000, help="bytes a second")
    parser.add_argument("--breaks", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tell(measure(Path(name), rate=given.rate, breaks=given.breaks), file=given.json)


def measure(folder: Path, *, rate: int, breaks: int) -> dict[str, Any]:
    """For each client: bytes that came over the link again, as a share of the bundle."""
    held = folder / "repository"
    held.mkdir()
    edge = bundles.write(held, large=True)
    what = describe(edge)
    places = [what.size_bytes * number // (breaks + 1) for number in range(1, breaks + 1)]
    ours = _ours(what)
    figures: dict[str, Any] = {
        "bundle_bytes": what.size_bytes,
        "rate_bytes_s": rate,
        "breaks": breaks,
    }
    runs: dict[str, tuple[Sequence[Client], bool]] = {
        "edgekit": ([ours], False),
        "edgekit_killed": ([ours], True),
        "curl": ([_curl], False),
        "wget": ([_wget], False),
    }
    with serving(held) as port:
        for name, (clients, kills) in runs.items():
            if name in ("curl", "wget") and shutil.which(name) is None:
                continue
            for client in clients:
                figures |= _run(
                    name, client, edge, folder / name, port, rate=rate, places=places, kills=kills
                )
    return figures
