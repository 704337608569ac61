"""100 kills over every state of an update: what serves after each, and what is left behind.

    python -m benchmarks.device.update_kills [--kills 100] [--seed 1]

Two series, half of the kills each: in a fleet without keys, and in one with mutual TLS, signed
wishes, a signed repository and deltas. Real daemon, broker, coordinator and HTTP server on
loopback; live requests run all along, so that canaries come to their verdicts. Kills strike at
random, most of them right after a state was reached.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from edgekit.signing import SigningKey
from tests import bundles
from tests.faults import LinkProxy
from tests.system import enrolled
from tests.system.chaos import update_kills
from tests.system.daemons import Coordinator, EdgeDaemon, Repository, broker

VERSIONS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name, measure in (("insecure", insecure), ("enrolled", with_keys)):
        with tempfile.TemporaryDirectory() as folder:
            outcome = measure(Path(folder), kills=given.kills // 2, seed=given.seed)
        found[name] = {
            "kills": sum(outcome.kills.values()),
            "by_state": outcome.kills,
            "requests_answered_between": outcome.answered,
            "left_behind": outcome.left,
        }
        print(f"{name}: {json.dumps(found[name])}")
    if given.json:
        given.json.write_text(json.dumps(found) + "\n", "utf-8")


def insecure(folder: Path, *, kills: int, seed: int) -> update_kills.Outcome:
    """A series in a fleet without keys; raises where no version serves after a kill."""
    key = SigningKey.generate()
    trust = folder / "trusted.pub"
    trust.write_bytes(key.public.pem)
    repository = Repository()
    wishes = [
        repository.put(bundles.write(folder, version=f"1.{n}.0", key=key, seed=n, large=True))
        for n in range(VERSIONS)
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
            neighbours = update_kills.Insecure(coordinator, repository)
            try:
                return update_kills.run(device, neighbours, wishes, kills=kills, seed=seed)
            finally:
                coordinator.link.close()
    finally:
        repository.close()


def with_keys(folder: Path, *, kills: int, seed: int) -> update_kills.Outcome:
    """The same in a fleet with keys, over a link that can be slow."""
    with enrolled.fleet(folder) as running, LinkProxy(("127.0.0.1", running.http)) as link:
        wishes = []
        for number in range(VERSIONS):
            running.publish(f"1.{number}.0", seed=number, large=True)
            wishes.append(running.wanted(f"1.{number}.0"))
        repository = f'repository = "{link.url("http")}repository/"'
        device = running.device(more=update_kills.CANARY, settings=repository)
        neighbours = update_kills.Enrolled(running, link)
        return update_kills.run(device, neighbours, wishes, kills=kills, seed=seed)


if __name__ == "__main__":
    main()
