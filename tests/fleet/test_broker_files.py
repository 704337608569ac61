"""What brokers are told of a fleet: rights as topics, files that follow the members."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from edgekit import certificates, topics
from edgekit.fleet import authority, broker_config, broker_files
from edgekit.fleet.authority import Subject
from edgekit.fleet.folder import Facts, FleetFolder
from edgekit.fleet.founding import found
from edgekit.fleet.members import Members
from tests.clock import ManualClock

SUBJECTS = st.builds(
    Subject,
    st.sampled_from(["berlin", "paris"]),
    st.from_regex(r"\A[a-z0-9-]{1,63}\Z").filter(lambda name: name != topics.ROUNDS),
    st.integers(1, 9),
)
LEAVES = ("status", "telemetry", "event", "state/reported", "state/desired", "ack", "cmd/1")


@given(one=SUBJECTS, other=SUBJECTS, leaf=st.sampled_from((*LEAVES, "cmd/1/result")))
def test_no_device_has_a_right_to_anothers_topics(one: Subject, other: Subject, leaf: str) -> None:
    rights = broker_config.device_rights(one)
    topic = topics.device(other.site, other.device, leaf)

    touched = any(topic_matches_sub(item, topic) for item in (*rights.write, *rights.read))

    assert not touched or (one.site, one.device) == (other.site, other.device)


@given(one=SUBJECTS)
def test_no_device_writes_what_is_the_coordinators_to_write(one: Subject) -> None:
    device, coordinator = broker_config.device_rights(one), broker_config.coordinator_rights()

    for right in device.write:
        plain = right.replace("+", "x")
        assert not any(topic_matches_sub(item, plain) for item in coordinator.write)
        assert any(topic_matches_sub(item, plain) for item in coordinator.read)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def folder(tmp_path: Path, clock: ManualClock) -> FleetFolder:
    made = FleetFolder(tmp_path / "fleet")
    facts = Facts(
        name="test",
        sites=("berlin",),
        broker="mqtts://mqtt.example.com:8883",
        repositories=("http://a/",),
        coordinator="http://a",
    )
    found(made, facts, clock=clock, hosts=("10.0.0.1",))
    return made


def test_files_are_replaced_only_where_somebody_came_or_went(
    folder: FleetFolder, clock: ManualClock
) -> None:
    members, users = Members(folder.members), folder.broker / broker_config.NATS_USERS
    before = os.stat(users).st_ino

    broker_files.write_users(folder, members, clock=clock)
    assert os.stat(users).st_ino == before

    with members.change() as change:
        change.enrol("berlin", "cam", now_ms=clock.now_ms())
    broker_files.write_users(folder, members, clock=clock)
    assert os.stat(users).st_ino != before
    assert "CN=cam,OU=1,O=berlin" in users.read_text()


def test_a_number_that_is_another_program_by_now_is_not_signalled(folder: FleetFolder) -> None:
    (folder.broker / "mosquitto.pid").write_text(str(os.getpid()))
    (folder.broker / "nats.pid").write_text("not a number")

    assert broker_files.tell(folder) == []


def test_certificates_of_services_are_made_anew_in_time_for_the_same_names(
    folder: FleetFolder, clock: ManualClock
) -> None:
    first = certificates.read(folder.broker_certificate)
    clock.advance(200 * 86_400)
    assert not broker_files.renew_services(folder, hosts=(), clock=clock)

    clock.advance(60 * 86_400)

    assert broker_files.renew_services(folder, hosts=(), clock=clock)
    renewed = certificates.read(folder.broker_certificate)
    assert renewed.not_valid_after_utc > first.not_valid_after_utc
    assert renewed.public_key() == first.public_key()
    assert authority.hosts_of(renewed) == ("mqtt.example.com", "10.0.0.1")


def test_private_files_are_for_their_owner_alone(folder: FleetFolder) -> None:
    private = [path for path in folder.path.rglob("*") if path.suffix == ".key"]

    assert len(private) == 10
    for path in [*private, folder.members]:
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (folder.offline, folder.release, folder.coordinator, folder.broker):
        assert path.stat().st_mode & 0o077 == 0, path
