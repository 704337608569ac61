"""Identities at the embedded broker."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.fleet.broker_contract import *  # noqa: F403 - the tests themselves
from tests.fleet.broker_contract import ROOT, Site
from tests.fleet.identities import Made, nats, settle


@pytest.fixture(scope="module")
def fleet_at_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("nats")
    made = Made(folder)
    with nats(made, folder / "state"):
        yield made


def test_the_brokers_own_protocol_asks_for_a_certificate_too(site: Site) -> None:
    log = (site.made.folder.path.parent / "state" / "nats.log").read_text()
    listening = re.search(r"client connections on 127\.0\.0\.1:(\d+)", log)
    assert listening

    with socket.create_connection(("127.0.0.1", int(listening[1])), 5) as plain:
        assert b'"tls_required":true' in plain.recv(65_536)
        plain.sendall(b'CONNECT {"user":"CN=coordinator","pass":""}\r\nSUB > 1\r\nPING\r\n')

        assert b"PONG" not in plain.recv(65_536)


def test_who_guesses_no_client_id_ends_no_session(site: Site) -> None:
    """NATS ends a session for another of the same client id, so a device's own is a secret."""
    cam = site.peer(site.cam, client_id="berlin-cam-0123456789abcdef").connected()

    guesser = site.peer(site.other, client_id="berlin-cam").connected()

    settle()
    assert cam.link.connected
    cam.say(f"{ROOT}/cam/event")
    cam.close()
    guesser.close()
