"""What holds at every broker: a device says and hears what is its own, and nothing else.

Each broker's tests import these and give the fixture `site`: a running broker of a made fleet.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from edgekit import link, topics
from edgekit.fleet.authority import Authority, Subject
from edgekit.fleet.broker import knock
from edgekit.fleet.eviction import evict
from edgekit.link import Tls, Will
from tests.fleet.identities import DAY_MS, SITE, Made, Peer, settle
from tests.fleet.processes import until

ROOT = f"edgekit/v1/{SITE}"
OWN = ("status", "telemetry", "event", "state/reported", "cmd/7/result")
COORDINATORS = ("state/desired", "ack", "cmd/7")
EVERYTHING = (
    *(topics.every_device(SITE, leaf) for leaf in (*OWN[:4], "cmd/+/result", *COORDINATORS[:2])),
    f"{ROOT}/+/cmd/+",
    f"{ROOT}/rounds/#",
)


class Site(NamedTuple):
    """A fleet at a broker: the coordinator hears everything; two devices are enrolled."""

    made: Made
    coordinator: Peer
    cam: Tls
    other: Tls

    def peer(self, tls: Tls, *filters: str, client_id: str = "", will: Will | None = None) -> Peer:
        name = client_id or f"{tls.certificate.parent.name}"
        return Peer(self.made.port, tls, client_id=name, filters=filters, will=will)


@pytest.fixture(scope="module")
def site(fleet_at_broker: Made) -> Iterator[Site]:
    made = fleet_at_broker
    coordinator = Peer(
        made.port, made.folder.client_tls, client_id="coordinator", filters=EVERYTHING
    ).connected()
    yield Site(made, coordinator, made.enrol("cam"), made.enrol("other"))
    coordinator.close()


def test_a_device_writes_its_leaves_and_nothing_else(site: Site) -> None:
    cam = site.peer(site.cam).connected()
    site.coordinator.heard.clear()

    allowed = {*(f"{ROOT}/cam/{leaf}" for leaf in OWN), f"{ROOT}/rounds/r1/update/cam"}
    forbidden = {
        *(f"{ROOT}/cam/{leaf}" for leaf in (*COORDINATORS, "cmd/7/result/x", "other", "state")),
        *(f"{ROOT}/other/{leaf}" for leaf in (*OWN, *COORDINATORS)),
        *(f"{ROOT}/rounds/r1/{leaf}" for leaf in ("update/other", "open", "parameters")),
        "edgekit/v1/paris/cam/status",
    }
    cam.say(*sorted(forbidden), *sorted(allowed))

    until(lambda: allowed <= site.coordinator.topics)
    settle()
    assert site.coordinator.topics == allowed
    cam.close()


def test_a_device_hears_what_is_for_it_and_nothing_else(site: Site) -> None:
    cam = site.peer(
        site.cam,
        *(f"{ROOT}/cam/{leaf}" for leaf in ("state/desired", "ack", "status", "cmd/+")),
        f"{ROOT}/rounds/+/open",
        f"{ROOT}/rounds/+/parameters",
    ).connected()
    greedy = ("#", "edgekit/#", f"{ROOT}/#", f"{ROOT}/+/+", "$SYS/#", "$MQTT/#", "$MQTT/sub/#")
    spy = site.peer(site.other, *greedy, f"{ROOT}/cam/state/desired").connected()
    settle()

    for_cam = {f"{ROOT}/cam/{leaf}" for leaf in COORDINATORS}
    rounds = {f"{ROOT}/rounds/r1/{leaf}" for leaf in ("open", "parameters")}
    site.coordinator.say(*sorted(for_cam | rounds))

    until(lambda: for_cam | rounds <= cam.topics)
    settle()
    assert spy.topics <= rounds
    cam.close()
    spy.close()


def test_nobody_leaves_a_will_on_anothers_topic(site: Site) -> None:
    liar = site.peer(site.other, will=Will(f"{ROOT}/cam/status", b"gone")).connected()
    honest = site.peer(site.cam, will=Will(f"{ROOT}/cam/status", b"mine")).connected()
    site.coordinator.heard.clear()

    liar.die()
    honest.die()

    until(lambda: (f"{ROOT}/cam/status", b"mine") in site.coordinator.heard)
    settle()
    assert site.coordinator.heard == [(f"{ROOT}/cam/status", b"mine")]
    liar.close()
    honest.close()


def test_without_a_certificate_nobody_gets_in(site: Site) -> None:
    context = link.tls_context(site.cam)
    bare = type(context)(context.protocol)
    bare.load_verify_locations(site.cam.ca)

    assert knock(("127.0.0.1", site.made.port), timeout_s=5, tls=context) == "accepted"
    assert knock(("127.0.0.1", site.made.port), timeout_s=5, tls=bare) == "refused"
    assert knock(("127.0.0.1", site.made.port), timeout_s=5) == "refused"


@pytest.mark.parametrize("case", ["another authority", "expired", "unknown", "older enrolment"])
def test_a_certificate_that_is_not_good_now_does_not_get_in(site: Site, case: str) -> None:
    made, now_ms = site.made, site.made.clock.now_ms()
    subject = Subject(SITE, "cam", 1)
    if case == "another authority":
        tls, _ = made.issue(subject, Authority.make(name="test", now_ms=now_ms)[0])
    elif case == "expired":
        tls, _ = made.issue(subject, made.authority, now_ms=now_ms - 11 * DAY_MS)
    elif case == "unknown":
        tls = site.made.enrol("stranger")
        site.made.revoke("stranger")
        settle()
    else:
        tls = site.made.enrol("again")
        site.made.enrol("again")
        settle()

    peer = site.peer(tls)

    assert peer.refused()
    peer.close()


def test_a_revoked_device_is_cut_off_in_the_middle_of_its_session(site: Site) -> None:
    lost = site.made.enrol("lost")
    settle()
    peer = site.peer(lost, f"{ROOT}/lost/ack").connected()
    peer.say(f"{ROOT}/lost/event")
    until(lambda: f"{ROOT}/lost/event" in site.coordinator.topics)
    stays = site.peer(site.cam).connected()

    subject = site.made.revoke("lost")
    outcome = evict(site.made.folder, subject, clock=site.made.clock)

    assert outcome in ("refused", "taken_over")
    until(lambda: not peer.link.connected)
    assert peer.refused()
    assert stays.link.connected
    again = site.made.enrol("lost")
    settle()
    back = site.peer(again).connected()
    assert not peer.link.connected
    for one in (peer, back, stays):
        one.close()


def test_a_link_connects_anew_with_the_certificate_that_replaced_its_own(site: Site) -> None:
    old = site.made.enrol("fresh")
    settle()
    peer = site.peer(old).connected()
    new = site.made.enrol("fresh")
    peer.link.reconnect()
    assert peer.refused()

    shutil.copy(new.key, old.key)
    shutil.copy(new.certificate, old.certificate)

    until(lambda: peer.link.connected)
    assert peer.link.refused is None
    peer.close()
