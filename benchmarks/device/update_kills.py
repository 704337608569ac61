"""100 kills over every state of an update: what serves after each, and what is left behind.

    python -m benchmarks.device.update_kills [--kills 100] [--seed 1]

A real daemon, broker and HTTP server on loopback; live requests run all along, so that canaries
come to their verdicts. Kills strike at random, half of them right after a state was reached.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from edgekit.signing import SigningKey
from tests import bundles
from tests.system.chaos import update_kills
from tests.system.daemons import Coordinator, EdgeDaemon, Repository, broker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = measure(Path(folder), kills=given.kills, seed=given.seed)
    print(
        json.dumps(
            {
                "kills": sum(outcome.kills.values()),
                "by_state": outcome.kills,
                "requests_answered_between": outcome.answered,
                "left_behind": outcome.left,
            },
            indent=2,
        )
    )


def measure(folder: Path, *, kills: int, seed: int) -> update_kills.Outcome:
    """One series; raises where a kill left a device without a version that serves."""
    key = SigningKey.generate()
    trust = folder / "trusted.pub"
    trust.write_bytes(key.public.pem)
    repository = Repository()
    wishes = [
        repository.put(bundles.write(folder, version=f"1.{n}.0", key=key, seed=n, large=True))
        for n in range(3)
    ]
    try:
        with broker(folder) as port:
            coordinator = Coordinator(port, "board-1")
            device = EdgeDaemon(
                folder,
                trust=trust,
                broker_port=port,
                repository=repository.url,
                confirm_after_s=0.3,
                more=update_kills.CANARY,
            )
            try:
                return update_kills.run(
                    device, coordinator, repository, wishes, kills=kills, seed=seed
                )
            finally:
                coordinator.link.close()
    finally:
        repository.close()


if __name__ == "__main__":
    main()
