"""A release key that was exchanged, in a real fleet: who still takes what the old one signed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.daemons import wait_for
from tests.system.enrolled import Fleet, fleet

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


def ended(running: Fleet, number: int) -> dict[str, Any]:
    """A rollout to one device, when it is over: its warnings, and that device."""

    def found() -> dict[str, Any] | None:
        shown: dict[str, Any] = running.get(f"/api/rollouts/{number}")
        return shown if shown["state"] in ("done", "halted") else None

    shown = wait_for(found, "the rollout to end")
    return {"warnings": shown["warnings"], **shown["devices"][0]}


def test_a_release_of_the_old_key_is_warned_of_and_refused_by_who_enrolled_later(
    running: Fleet,
) -> None:
    running.publish("1.0.0", seed=1)
    early = running.device("early")
    early.start()
    running.run("fleet", "rotate-root", running.folder.path, "--replace", "release")
    late = running.device("late")
    late.start()
    by_early = ended(running, running.rollout("1.0.0", name="early"))
    by_late = ended(running, running.rollout("1.0.0", name="late"))
    running.publish("1.1.0", seed=2)
    newer = ended(running, running.rollout("1.1.0", name="late"))
    for device in (early, late):
        device.stop()

    assert (by_early["outcome"], by_late["outcome"]) == ("moved", "failed")
    assert "was signed by a release key that was exchanged" in by_late["warnings"][0]
    assert by_early["warnings"] == by_late["warnings"]
    assert (newer["outcome"], newer["warnings"]) == ("moved", [])
