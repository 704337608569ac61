"""A hundred kill -9 of daemon, broker and coordinator, with 100,000 messages: lost, stored twice.

    python -m benchmarks.device.mixed_kills [--kills 100] [--messages 100000] [--seed 5] [--json F]

Real daemons that serve requests, a real nats-server with its store on disk, a real coordinator.
Telemetry is told every few milliseconds instead of every minute, so that so many messages come
together; everything else is as shipped. It takes about 17 minutes on two busy cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec

from benchmarks.process import tell
from tests.system.chaos import mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--daemons", type=int, default=3)
    parser.add_argument("--interval-s", type=float, default=0.006)
    parser.add_argument("--pause-s", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = mixed.run(
            Path(folder),
            kills=given.kills,
            at_least=given.messages,
            daemons=given.daemons,
            interval_s=given.interval_s,
            pause_s=given.pause_s,
            seed=given.seed,
            tell=print,
        )
    tell(msgspec.to_builtins(found), file=given.json)


if __name__ == "__main__":
    main()
