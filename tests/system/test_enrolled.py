"""The whole way of an enrolled device: a token, a certificate, a signed wish, a signed bundle."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from edgekit import envelope, messages, signed_frame, topics
from edgekit.clock import SystemClock
from edgekit.fleet.members import Members
from edgekit.messages import Desired, Refusal, RoundOpen, Wanted
from edgekit.signing import SigningKey
from tests.system.daemons import EdgeDaemon, wait_for
from tests.system.enrolled import DEVICE, NAME, SITE, Fleet, fleet

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture(scope="module")
def device(running: Fleet) -> Iterator[EdgeDaemon]:
    data = running.place / "data.npz"
    made = running.device(more=f'[training]\ndata = "{data}"\nmodels = ["tiny"]\n')
    running.publish("1.0.0", seed=1)
    made.start()
    try:
        running.rollout("1.0.0")
        wait_for(lambda: made.versions("tiny") == ["1.0.0"], "the first version")
        wait_for(lambda: running.state().get("state") == "confirmed", "its confirmation")
        yield made
    finally:
        assert made.stop() == 0
    assert "Traceback" not in made.log


def test_an_enrolled_device_serves_what_its_fleet_signed(
    running: Fleet, device: EdgeDaemon
) -> None:
    assert running.state()["version"] == "1.0.0"
    assert (device.state / "identity" / "device.key").stat().st_mode & 0o077 == 0


def test_the_next_version_comes_as_a_delta(running: Fleet, device: EdgeDaemon) -> None:
    running.publish("1.1.0", seed=1, large=False)
    running.rollout("1.1.0")

    wait_for(lambda: device.versions("tiny") == ["1.1.0"], "the second version")
    assert "bundle rebuilt from a delta" in device.log


def test_only_the_fleet_can_ask_a_device_to_train(running: Fleet, device: EdgeDaemon) -> None:
    opened = RoundOpen(
        round="r1",
        site=SITE,
        model="tiny",
        base="sha256:" + "0" * 64,
        parameters_sha256="0" * 64,
        participants=(DEVICE,),
        epochs=1,
        batch_size=1,
        learning_rate=0.1,
        closes_at=1 << 52,
    )
    control = SigningKey.read(running.folder.control_key)
    plain = messages.encode(opened)
    elsewhere = messages.encode(msgspec.structs.replace(opened, site="elsewhere"))
    for payload in (
        plain,
        envelope.sign(plain, kind=envelope.ROUND, key=SigningKey.generate()),
        envelope.sign(plain, kind=envelope.DESIRED, key=control),
        envelope.sign(elsewhere, kind=envelope.ROUND, key=control),
    ):
        dropped = device.log.count("message dropped")
        running.say(topics.round_open(SITE, "r1"), payload)
        wait_for(lambda: device.log.count("message dropped") > dropped, "the round to be dropped")  # noqa: B023
    assert "round taken up" not in device.log

    signed = envelope.sign(plain, kind=envelope.ROUND, key=control)
    heard: list[tuple[str, bytes]] = []
    with running.link(heard, topics.every_update(SITE)):
        running.say(topics.round_open(SITE, "r1"), signed)
        wait_for(lambda: heard, "an answer")

    keys = Members(running.folder.members).keys(SITE, DEVICE, now_ms=SystemClock().now_ms())
    answer = signed_frame.open_(
        heard[0][1], kind=signed_frame.UPDATE, trusted=keys, what=heard[0][0]
    )
    assert messages.decode(answer, Refusal, topic=heard[0][0]).reason == "wrong_base"


def test_a_wish_that_the_fleet_did_not_sign_is_dropped(running: Fleet, device: EdgeDaemon) -> None:
    """Whoever holds the broker, even with the coordinator's certificate, cannot wish."""
    before = device.versions("tiny")
    wish = Desired(
        serial=1 << 52,
        device=NAME,
        models={
            "tiny": Wanted(
                version="9.9.9",
                digest="sha256:" + "1" * 64,
                url="tiny/9.9.9/generic-x86_64.edge",
                sha256="1" * 64,
                size_bytes=10,
            )
        },
    )
    plain = messages.encode(wish)
    stranger = envelope.sign(plain, kind=envelope.DESIRED, key=SigningKey.generate())
    control = SigningKey.read(running.folder.control_key)
    other = messages.encode(Desired(serial=1 << 52, device=f"{SITE}/another", models=wish.models))
    for_another = envelope.sign(other, kind=envelope.DESIRED, key=control)
    as_command = envelope.sign(plain, kind=envelope.COMMAND, key=control)

    for payload in (plain, stranger, for_another, as_command):
        dropped = device.log.count("message dropped")
        running.say(topics.device(SITE, DEVICE, topics.DESIRED), payload)
        wait_for(lambda: device.log.count("message dropped") > dropped, "the wish to be dropped")  # noqa: B023

    assert device.versions("tiny") == before
    wait_for(lambda: running.state()["state"] == "confirmed", "the version before to be confirmed")
