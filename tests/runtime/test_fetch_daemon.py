"""A real daemon whose repository is at the other end of a bad link, and a real broker."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from edgekit.signing import SigningKey, new_pair
from edgekit_runtime.slots import Slots
from tests import bundles
from tests.faults import Conditions, LinkProxy
from tests.system.daemons import Coordinator, EdgeDaemon, Repository, broker, wait_for

pytestmark = pytest.mark.system

SHARE = 5


def test_a_rollback_and_a_stop_wait_for_no_repository_that_is_silent(tmp_path: Path) -> None:
    private, public = new_pair(tmp_path / "keys")
    key = SigningKey.read(private)
    with broker(tmp_path) as port, closing(Repository()) as repository:
        place = urlsplit(repository.url)
        upstream = (str(place.hostname), int(place.port or 0))
        coordinator = Coordinator(port, "board-1")
        with closing(coordinator.link), LinkProxy(upstream) as link:
            base = f"{link.url()}repository/"
            device = EdgeDaemon(tmp_path, trust=public, broker_port=port, repository=base)
            device.start()
            try:
                for serial, version in enumerate(["1.0.0", "1.1.0"], start=1):
                    edge = bundles.write(tmp_path, key=key, version=version, seed=serial)
                    coordinator.want(serial, tiny=repository.put(edge))
                    wait_for(partial(served, device, version), version)
                link.set(Conditions(half_open=True))
                before = link.counts().connections
                edge = bundles.write(tmp_path, key=key, version="1.2.0", seed=3)
                coordinator.want(3, tiny=repository.put(edge))
                wait_for(lambda: link.counts().connections > before, "a request")

                Slots(device.state).ask("tiny", "rollback")
                wait_for(lambda: device.versions("tiny") == ["1.0.0"], "the way back")
                # It goes on with the update, and waits again.
                wait_for(lambda: link.counts().connections > before + 1, "another request")
                assert device.stop() == 0
            finally:
                device.kill()


def served(device: EdgeDaemon, version: str) -> bool:
    """Whether a version serves, and nothing is under way."""
    return device.versions("tiny") == [version] and device.update_state("tiny") == "confirmed"


def test_an_update_over_a_link_that_breaks_and_through_a_kill_carries_each_byte_once(
    tmp_path: Path,
) -> None:
    private, public = new_pair(tmp_path / "keys")
    with broker(tmp_path) as port, closing(Repository()) as repository:
        edge = bundles.write(tmp_path, key=SigningKey.read(private), large=True)
        wanted = repository.put(edge)
        size = wanted.size_bytes
        place = urlsplit(repository.url)
        upstream = (str(place.hostname), int(place.port or 0))
        coordinator = Coordinator(port, "board-1")
        with (
            closing(coordinator.link),
            LinkProxy(upstream, conditions=Conditions(bytes_s=4_000_000)) as link,
        ):
            link.cut_at([size * number // SHARE for number in (1, 3)])
            base = f"{link.url()}repository/"
            device = EdgeDaemon(tmp_path, trust=public, broker_port=port, repository=base)
            part = device.state / "fetch" / f"{wanted.sha256}.part"
            device.start()
            try:
                coordinator.want(1, tiny=wanted)
                half = size * 2 // SHARE
                wait_for(lambda: part.exists() and part.stat().st_size > half, "half of it")
                device.kill()
                device.start()
                wait_for(lambda: device.versions("tiny") == ["1.0.0"], "the version")
                wait_for(lambda: device.update_state("tiny") == "confirmed", "its confirmation")
                counts = link.counts()
            finally:
                device.kill()

    assert counts.cuts == 2
    # What was on its way into the process that was killed came again.
    assert counts.down_bytes <= size * 1.01 + 200_000
    assert not part.exists()
