"""Identities at Debian's mosquitto, with the files that `fleet init` writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.fleet.broker_contract import *  # noqa: F403 - the tests themselves
from tests.fleet.broker_contract import ROOT, Site
from tests.fleet.identities import Made, mosquitto, settle


@pytest.fixture(scope="module")
def fleet_at_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    if shutil.which("mosquitto") is None:
        pytest.skip("needs mosquitto: `make system-deps` installs it")
    folder = tmp_path_factory.mktemp("mosquitto")
    made = Made(folder)
    with mosquitto(made, folder):
        yield made


def test_the_client_id_is_the_identity_whatever_the_client_says(site: Site) -> None:
    cam = site.peer(site.cam, client_id="berlin-cam").connected()

    thief = site.peer(site.other, client_id="berlin-cam").connected()

    settle()
    assert cam.link.connected
    cam.say(f"{ROOT}/cam/event")
    cam.close()
    thief.close()
