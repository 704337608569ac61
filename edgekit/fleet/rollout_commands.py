"""`edgekit rollout`: create, watch and stop rollouts."""

from __future__ import annotations

import time
from typing import Any

import click

from edgekit.errors import FleetError
from edgekit.fleet.client import DEFAULT_URL, Client, show
from edgekit.fleet.listing import paragraph, table
from edgekit.numbers import FloatRange

_POLL_S = 0.5
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
    help="Seconds that a device has until it serves the version, confirmed.",
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
    said = ""
    while True:
        if (line := _line(found)) != said:
            said = line
            click.echo("\n".join(paragraph(line)), err=True)
        if found["state"] not in ("running", "paused"):
            return found
        time.sleep(_POLL_S)
        found = client.get(f"/api/rollouts/{found['id']}", dict[str, Any])


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    devices = table([_row(device) for device in found["devices"]])
    show(found, as_json=as_json, lines=[*paragraph(_line(found)), *devices])


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    wave = "no wave" if device["wave"] is None else f"wave {device['wave']}"
    name, version = f"  {device['device']}", device["version"] or "-"
    return name, wave, device["outcome"], version, device["reason"]


def _line(found: dict[str, Any]) -> str:
    waves = " ".join(f"{wave['moved']}/{wave['devices']}" for wave in found["waves"])
    reason = f": {found['reason']}" if found["reason"] else ""
    return (
        f"rollout {found['id']}: {found['model']} {found['version']} {found['state']}"
        f"{reason} (waves {waves})"
    )
