"""A device that is revoked, in a real fleet: no rollout waits for it, and no count has it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.daemons import EdgeDaemon, wait_for
from tests.system.enrolled import SITE, Fleet, fleet

pytestmark = [pytest.mark.system, pytest.mark.slow]

Daemons = dict[str, EdgeDaemon]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture(scope="module")
def daemons(running: Fleet) -> Iterator[Daemons]:
    """Three devices, the last of which has been seen and is switched off."""
    made = {name: running.device(name) for name in ("a", "b", "c")}
    for device in made.values():
        device.start()
    wait_for(lambda: all(is_online(running, name) for name in made), "all devices")
    made["c"].stop()
    wait_for(lambda: not is_online(running, "c"), "the last one to be gone")
    yield made
    for name, device in made.items():
        device.stop()
        assert "Traceback" not in device.log, name


@pytest.fixture(scope="module")
def waited(running: Fleet, daemons: Daemons) -> dict[str, Any]:
    """A rollout that waited for the device that is off, until that one was revoked."""
    running.publish("1.0.0", seed=1)
    number = roll(running, "1.0.0", "--wave", "1", "--wave", "100%", "--timeout", "3600")
    wait_for(
        lambda: outcomes(running, number) == {"a": "moved", "b": "moved", "c": "moving"},
        "all others",
    )
    assert rollout(running, number)["reason"] == "1 still moving"

    running.run("fleet", "revoke", f"{SITE}/c", "--fleet", running.folder.path)

    wait_for(lambda: rollout(running, number)["state"] != "running", "the end of the rollout")
    return rollout(running, number)


def roll(running: Fleet, version: str, *options: str) -> int:
    made = running.run(
        *("rollout", "create", "--model", "tiny", "--version", version, *options),
        *("--coordinator", running.url),
    )
    return int(made["id"])


def rollout(running: Fleet, number: int) -> dict[str, Any]:
    found: dict[str, Any] = running.get(f"/api/rollouts/{number}")
    return found


def outcomes(running: Fleet, number: int) -> dict[str, str]:
    devices = rollout(running, number)["devices"]
    return {item["device"].removeprefix(f"{SITE}/"): item["outcome"] for item in devices}


def is_online(running: Fleet, name: str) -> bool:
    shown = running.shown(name)
    return shown is not None and bool(shown["online"])


def said(running: Fleet, *words: str, code: int = 0) -> str:
    """What a command prints for people."""
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *words, "--coordinator", running.url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_rollout_goes_on_without_a_device_that_is_revoked(waited: dict[str, Any]) -> None:
    assert waited["state"] == "done"
    (gone,) = [item for item in waited["devices"] if item["device"] == f"{SITE}/c"]
    assert (gone["outcome"], gone["wave"]) == ("revoked", None)
    assert [(wave["devices"], wave["moved"]) for wave in waited["waves"]] == [(1, 1), (1, 1)]


def test_a_revoked_device_is_listed_as_such_and_counted_nowhere(
    running: Fleet, waited: dict[str, Any]
) -> None:
    shown = running.shown("c")
    assert shown is not None
    assert (shown["revoked"], shown["online"]) == (True, False)
    lines = said(running, "fleet", "devices").splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(SITE)] == [
        [f"{SITE}/a", "online"],
        [f"{SITE}/b", "online"],
        [f"{SITE}/c", "revoked,"],
    ]
    overview = running.get("/api/overview")
    assert (overview["known"], overview["online"]) == (2, 2)
    assert [one["device"] for one in overview["devices"]] == [f"{SITE}/a", f"{SITE}/b"]


def test_nothing_more_is_asked_of_a_revoked_device(running: Fleet, waited: dict[str, Any]) -> None:
    running.publish("1.1.0", seed=2)
    create = ("rollout", "create", "--model", "tiny", "--version", "1.1.0")
    refused = said(running, *create, "--device", "c", code=8)
    assert f"{SITE}/c was revoked" in refused
    assert f"{SITE}/c was revoked" in said(running, "fleet", "command", "c", "reload", code=8)

    number = roll(running, "1.1.0", "--wave", "100%")

    wait_for(lambda: rollout(running, number)["state"] == "done", "the rollout")
    assert outcomes(running, number) == {"a": "moved", "b": "moved"}


def test_a_device_that_enrols_anew_is_one_like_any_other(
    running: Fleet, daemons: Daemons, waited: dict[str, Any]
) -> None:
    running.enroll(daemons["c"], "c")
    daemons["c"].start()

    wait_for(lambda: is_online(running, "c"), "the device")
    shown = running.shown("c")
    assert shown is not None
    assert not shown["revoked"]
    number = roll(running, "1.0.0", "--device", f"{SITE}/c")
    wait_for(lambda: rollout(running, number)["state"] == "done", "the rollout")
    assert running.get("/api/overview")["known"] == 3
