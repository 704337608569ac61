"""A rollout over a real broker and real HTTP, with simulated devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from tests.fleet.device_simulator import Behaviour, DeviceSimulator
from tests.fleet.processes import Fleet, edgekit, until

Write = Callable[..., Path]


def rollout(fleet: Fleet, *arguments: str) -> dict[str, Any]:
    done = edgekit("rollout", *arguments, "--coordinator", fleet.url, "--json")
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def publish(fleet: Fleet, path: Path) -> str:
    done = edgekit("publish", str(path), "--coordinator", fleet.url, "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["bundle"]["digest"])


def devices(
    fleet: Fleet, stack: ExitStack, names: list[str], *, behaviour: Behaviour = "good"
) -> list[DeviceSimulator]:
    made = [
        DeviceSimulator(fleet.mqtt, name, repository=fleet.repository, behaviour=behaviour)
        for name in names
    ]
    for device in made:
        stack.enter_context(device)
    until(lambda: all(fleet.devices().get(name, {}).get("online") for name in names))
    return made


def test_a_rollout_reaches_every_device_in_waves(fleet: Fleet, write_bundle: Write) -> None:
    digest = publish(fleet, write_bundle("1.0.0", name="waves"))
    with ExitStack() as stack:
        made = devices(fleet, stack, ["w-1", "w-2", "w-3", "w-4"])
        chosen = [part for device in made for part in ("--device", device.device)]

        done = rollout(
            fleet,
            *("create", "--model", "waves", "--version", "1.0.0", *chosen, "--watch"),
        )

        assert done["state"] == "done"
        assert [wave["moved"] for wave in done["waves"]] == [1, 1, 2]
        assert all(device.models["waves"].digest == digest for device in made)
    assert done["devices"][0]["wave"] == 1


def test_a_failing_canary_halts_the_rollout_and_gets_back_what_it_had(
    fleet: Fleet, write_bundle: Write
) -> None:
    publish(fleet, write_bundle("1.0.0", name="halts"))
    publish(fleet, write_bundle("2.0.0", name="halts", seed=1))
    with ExitStack() as stack:
        first, second = devices(fleet, stack, ["h-1", "h-2"])
        chosen = ["--device", "h-1", "--device", "default/h-2"]
        create = ["create", "--model", "halts", *chosen, "--watch", "--version"]
        assert rollout(fleet, *create, "1.0.0")["state"] == "done"
        first.behaviour = "failing"

        halted = rollout(fleet, *create, "2.0.0")

        assert halted["state"] == "halted"
        assert [item["outcome"] for item in halted["devices"]] == ["failed", "unasked"]
        assert "1 failed, 0 allowed" in halted["reason"]
        until(lambda: first.desired[-1].models["halts"].version == "1.0.0")
        serials = [wish.serial for wish in first.desired]
        assert serials == sorted(serials)
        assert len(set(serials)) == 3
        assert second.desired[-1].models["halts"].version == "1.0.0"
        assert len({wish.serial for wish in second.desired}) == 1


def test_a_paused_rollout_asks_nobody_until_it_is_resumed(
    fleet: Fleet, write_bundle: Write
) -> None:
    publish(fleet, write_bundle("1.0.0", name="pauses"))
    with ExitStack() as stack:
        devices(fleet, stack, ["p-1", "p-2"], behaviour="silent")
        chosen = ["--device", "p-1", "--device", "p-2"]
        number = rollout(
            fleet, "create", "--model", "pauses", "--version", "1.0.0", *chosen, "--wave", "1",
            "--wave", "2",
        )["id"]  # fmt: skip

        assert rollout(fleet, "pause", str(number))["state"] == "paused"
        assert rollout(fleet, "resume", str(number))["state"] == "running"
        until(lambda: rollout(fleet, "show", str(number))["devices"][0]["outcome"] == "moving")
        aborted = rollout(fleet, "abort", str(number))

        assert aborted["state"] == "aborted"
        assert [(item["outcome"], item["reason"]) for item in aborted["devices"]] == [
            ("stopped", "given back what it had"),
            ("unasked", ""),
        ]
        assert [wave["moving"] for wave in aborted["waves"]] == [0, 0]
        again = edgekit("rollout", "resume", str(number), "--coordinator", fleet.url)
        assert again.returncode == 8
        assert "is aborted and cannot become running" in again.stderr


def test_a_rollout_goes_on_after_the_coordinator_is_killed(
    fleet: Fleet, write_bundle: Write
) -> None:
    publish(fleet, write_bundle("1.0.0", name="survives"))
    with ExitStack() as stack:
        (device,) = devices(fleet, stack, ["s-1"], behaviour="silent")
        create = ["create", "--model", "survives", "--version", "1.0.0", "--device", "s-1"]
        number = rollout(fleet, *create)["id"]
        until(lambda: device.desired)

        fleet.restart(kill=True)
        device.behaviour = "good"
        device.link.publish(device.topic("event"), b"not a message")

        def state() -> str:
            return str(rollout(fleet, "show", str(number))["state"])

        until(lambda: len(device.desired) > 1)
        until(lambda: state() == "done")


def test_a_device_whose_profile_has_no_bundle_is_skipped_and_named(
    fleet: Fleet, write_bundle: Write
) -> None:
    publish(fleet, write_bundle("1.0.0", name="skips"))
    with ExitStack() as stack:
        devices(fleet, stack, ["k-1"])
        other = DeviceSimulator(fleet.mqtt, "k-2", profile="jetson")
        stack.enter_context(other)
        until(lambda: fleet.devices().get("k-2", {}).get("profile") == "jetson")

        done = rollout(
            fleet, "create", "--model", "skips", "--version", "1.0.0", "--device", "k-1",
            "--device", "k-2", "--watch",
        )  # fmt: skip

        assert done["state"] == "done"
        skipped = next(item for item in done["devices"] if item["device"] == "default/k-2")
        assert (skipped["outcome"], skipped["wave"]) == ("skipped", None)
        assert "jetson" in skipped["reason"]


def test_what_is_not_published_cannot_be_rolled_out(fleet: Fleet) -> None:
    done = edgekit(
        "rollout", "create", "--model", "ghost", "--version", "1.0.0", "--coordinator", fleet.url
    )

    assert done.returncode == 8
    assert "hint: edgekit publish BUNDLE" in done.stderr


def test_a_bundle_is_listed_by_its_digest(fleet: Fleet, write_bundle: Write) -> None:
    path = write_bundle("1.0.0", name="listed")
    with Bundle.open(path) as opened:
        assert publish(fleet, path) == opened.digest
