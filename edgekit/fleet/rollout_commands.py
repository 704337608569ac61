"""`edgekit rollout`: create, watch and stop rollouts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from edgekit.errors import FleetError
from edgekit.fleet import wording
from edgekit.fleet.client import DEFAULT_URL, Client, say, show
from edgekit.fleet.listing import paragraph, table
from edgekit.fleet.watching import follow
from edgekit.numbers import FloatRange

_HEAD = ("DEVICE", "WAVE", "OUTCOME", "SERVES", "UPDATE", "NOTE")
_MOST_TOLD = 8
_DEFAULT_WAVES = ("1", "50%", "100%")
_coordinator = click.option(
    "--coordinator",
    "url",
    default=DEFAULT_URL,
    show_default=True,
    help="The coordinator's address.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_number = click.argument("number", type=int)


@click.group(epilog="Example: edgekit rollout list")
def rollout() -> None:
    """Bring a bundle to a fleet in waves that stop themselves."""


@rollout.command(
    epilog="Example: edgekit rollout create --model lite0 --version 1.1.0 --wave 1 --wave 100%"
)
@click.option("--model", required=True)
@click.option("--version", required=True, help="A published version.")
@click.option(
    "--wave",
    "waves",
    multiple=True,
    help="Devices after this wave, as a count or a percentage, cumulative. [1, 50%, 100%]",
)
@click.option("--max-failures", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--timeout",
    "timeout_s",
    default=600.0,
    show_default=True,
    type=FloatRange(min=0, min_open=True),
    help="Seconds that a device has until it serves the version, confirmed. Its canary does"
    " not count; hours in which its download window is shut do.",
)
@click.option("--site", help="Only devices of this site.")
@click.option("--device", "devices", multiple=True, help="Only these devices: ID or SITE/ID.")
@click.option("--watch", is_flag=True, help="Wait for the end; exit 8 where it was not done.")
@_coordinator
@_json
def create(
    model: str,
    version: str,
    waves: tuple[str, ...],
    max_failures: int,
    timeout_s: float,
    site: str | None,
    devices: tuple[str, ...],
    watch: bool,
    url: str,
    as_json: bool,
) -> None:
    """Begin a rollout of a published version.

    Each device gets the bundle of its own profile. A wave begins when all devices of the waves
    before have answered. More than --max-failures failed devices halt the rollout, and every
    device that was asked gets back what it had.
    """
    body = {
        "model": model,
        "version": version,
        "waves": waves or _DEFAULT_WAVES,
        "max_failures": max_failures,
        "timeout_s": timeout_s,
        "site": site,
        "devices": devices,
    }
    client = Client(url)
    found = client.post("/api/rollouts", body, dict[str, Any])
    if watch:
        for warning in found["warnings"]:
            say(paragraph(f"warning: {warning}"))
        found = _watch(client, found)
    _show(found, as_json=as_json)
    if watch and found["state"] != "done":
        raise FleetError(
            f"rollout {found['id']} is {found['state']}: {found['reason']}",
            hint=f"edgekit rollout show {found['id']} lists the devices",
        )


@rollout.command("list", epilog="Example: edgekit rollout list --json")
@_coordinator
@_json
def list_(url: str, as_json: bool) -> None:
    """List the latest rollouts, the newest first."""
    found = Client(url).get("/api/rollouts", dict[str, Any])
    lines = [line for item in found["rollouts"] for line in paragraph(_line(item))]
    show(found, as_json=as_json, lines=lines or ["there is no rollout yet"])


@rollout.command("show", epilog="Example: edgekit rollout show 3")
@_number
@_coordinator
@_json
def show_(number: int, url: str, as_json: bool) -> None:
    """Show rollout NUMBER with its waves and devices."""
    _show(Client(url).get(f"/api/rollouts/{number}", dict[str, Any]), as_json=as_json)


@rollout.command(epilog="Example: edgekit rollout pause 3")
@_number
@_coordinator
@_json
def pause(number: int, url: str, as_json: bool) -> None:
    """Ask no further wave of rollout NUMBER; devices that were asked go on."""
    _move(url, number, "pause", as_json=as_json)


@rollout.command(epilog="Example: edgekit rollout resume 3")
@_number
@_coordinator
@_json
def resume(number: int, url: str, as_json: bool) -> None:
    """Carry on the paused rollout NUMBER."""
    _move(url, number, "resume", as_json=as_json)


@rollout.command(epilog="Example: edgekit rollout abort 3")
@_number
@_coordinator
@_json
def abort(number: int, url: str, as_json: bool) -> None:
    """End rollout NUMBER; every device that was asked gets back what it had."""
    _move(url, number, "abort", as_json=as_json)


def _move(url: str, number: int, move: str, *, as_json: bool) -> None:
    found = Client(url).post(f"/api/rollouts/{number}/{move}", {}, dict[str, Any])
    _show(found, as_json=as_json)


def _watch(client: Client, found: dict[str, Any]) -> dict[str, Any]:
    return follow(
        client,
        f"/api/rollouts/{found['id']}",
        found,
        going=("running", "paused"),
        told=lambda now: [paragraph(_line(now)), *_moving(now)],
        what=f"rollout {found['id']}",
        command=f"edgekit rollout show {found['id']}",
    )


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    warnings = [line for item in found["warnings"] for line in paragraph(f"warning: {item}")]
    devices = table([_HEAD, *(_row(one, version=found["version"]) for one in found["devices"])])
    show(found, as_json=as_json, lines=[*paragraph(_line(found)), *warnings, *devices])


def _row(device: dict[str, Any], *, version: str) -> tuple[str, ...]:
    wave = "-" if device["wave"] is None else str(device["wave"])
    state = wording.step(device["update"], device["progress"])
    other = "" if device["target"] in (None, version) else f" of {device['target']}"
    there = "" if device["online"] else f"; {wording.seen(device)}"
    return (
        device["device"],
        wave,
        device["outcome"],
        device["version"] or "none",
        f"{state}{other}{there}",
        "; ".join(filter(None, (device["reason"], *_canary(device)))),
    )


def _canary(device: dict[str, Any]) -> tuple[str, str]:
    """How the canary of a device that moved ended, and what it measured."""
    end = device["canary"] if device["outcome"] == "moved" else None
    how = "" if end is None else f"canary {end['outcome']}: {end['detail']}"
    return how, wording.figures(device["figures"])


def _moving(found: dict[str, Any]) -> list[list[str]]:
    """What the devices that were asked do now: each, or how many where they are many."""
    moving = [device for device in found["devices"] if device["outcome"] == "moving"]
    if len(moving) > _MOST_TOLD:
        counts = Counter(device["update"] for device in moving)
        told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        return [paragraph(f"moving: {told}", indent="  ")]
    return [paragraph(f"{device['device']}: {_doing(device)}", indent="  ") for device in moving]


def _doing(device: dict[str, Any]) -> str:
    """To the tenth: each step of one per cent would be a line."""
    progress = device["progress"]
    tenth = None if progress is None else int(progress * 10) / 10
    state = wording.step(device["update"], tenth)
    return state if device["online"] else f"{state}; {wording.seen(device)}"


def _line(found: dict[str, Any]) -> str:
    waves = " ".join(f"{wave['moved']}/{wave['devices']}" for wave in found["waves"])
    reason = f": {found['reason']}" if found["reason"] else ""
    return (
        f"rollout {found['id']}: {found['model']} {found['version']} {found['state']}"
        f"{reason} (waves {waves})"
    )
