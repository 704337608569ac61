"""The plug is pulled in every state of an update: the old or the new version serves afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from edgekit.signing import SigningKey
from edgekit_runtime.update import UNDER_WAY
from tests import bundles
from tests.system.daemons import Coordinator, EdgeDaemon, Repository, broker, wait_for

pytestmark = [pytest.mark.system, pytest.mark.slow]

DEVICE = "board-1"
STATES = sorted(state.value for state in UNDER_WAY)
KILLS = 15


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def repository() -> Iterator[Repository]:
    made = Repository()
    yield made
    made.close()


def test_a_kill_in_any_state_of_an_update_leaves_a_version_that_serves(
    tmp_path: Path, key: SigningKey, repository: Repository
) -> None:
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
        )
        device.start()
        coordinator.want(1, tiny=wishes[0])
        wait_for(lambda: device.versions("tiny") == ["1.0.0"], "the first version")
        random, killed = Random(7), []
        for kill in range(KILLS):
            serial, target = kill + 2, STATES[kill % len(STATES)]
            # Slow enough to be caught in the middle, never the same bytes twice.
            repository.pace_s = 0.002 if target == "fetching" else 0.0
            coordinator.want(serial, tiny=wishes[serial % 3])
            _wait_for_state(device, target)
            time.sleep(random.random() * 0.02)
            killed.append(device.update_state("tiny"))
            device.kill()
            repository.pace_s = 0.0
            device.start()
            versions = wait_for(lambda: device.versions("tiny"), "a version that serves")
            assert len(versions) == 1
            assert versions[0] in ("1.0.0", "1.1.0", "1.2.0")
        coordinator.want(KILLS + 2, tiny=wishes[0])
        wait_for(lambda: device.versions("tiny") == ["1.0.0"], "the last wish")
        assert device.stop() == 0
        coordinator.link.close()
    print("killed in:", {state: killed.count(state) for state in sorted(set(killed))})  # noqa: T201
    assert "Traceback" not in device.log
    assert {"fetching", "active"} <= set(killed)


def _wait_for_state(device: EdgeDaemon, target: str) -> None:
    """Until the record says so; a state that is over too soon is let go."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and device.update_state("tiny") != target:
        pass
