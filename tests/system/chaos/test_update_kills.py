"""A daemon that is killed at any moment of an update serves the old or the new version after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.signing import SigningKey
from tests import bundles
from tests.system.chaos import update_kills
from tests.system.daemons import Coordinator, EdgeDaemon, Repository, broker

pytestmark = [pytest.mark.system, pytest.mark.slow]

DEVICE = "board-1"
KILLS = 10


@pytest.fixture
def repository() -> Iterator[Repository]:
    made = Repository()
    yield made
    made.close()


def test_a_kill_at_any_moment_of_an_update_leaves_a_version_that_serves(
    tmp_path: Path, repository: Repository
) -> None:
    key = SigningKey.generate()
    trust = tmp_path / "trusted.pub"
    trust.write_bytes(key.public.pem)
    wishes = [
        repository.put(bundles.write(tmp_path, version=f"1.{n}.0", key=key, seed=n, large=True))
        for n in range(3)
    ]
    with broker(tmp_path) as port:
        coordinator = Coordinator(port, DEVICE)
        device = EdgeDaemon(
            tmp_path,
            trust=trust,
            broker_port=port,
            repository=repository.url,
            confirm_after_s=0.3,
            more=update_kills.CANARY,
        )
        try:
            neighbours = update_kills.Insecure(coordinator, repository)
            outcome = update_kills.run(device, neighbours, wishes, kills=KILLS, seed=7)
        finally:
            coordinator.link.close()

    print("killed in:", outcome.kills, "answered:", outcome.answered)  # noqa: T201
    assert "Traceback" not in device.log
    assert sum(outcome.kills.values()) == KILLS
    assert len(outcome.kills) >= 3
    assert outcome.left == []
