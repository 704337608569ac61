"""A real daemon whose repository is at the other end of a bad link, and a real broker."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from edgekit.signing import SigningKey, new_pair
from tests import bundles
from tests.faults import Conditions, LinkProxy
from tests.system.daemons import Coordinator, EdgeDaemon, Repository, broker, wait_for

pytestmark = pytest.mark.system

SHARE = 5


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
