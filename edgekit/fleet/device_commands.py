"""`edgekit fleet devices` and `edgekit fleet events`: which devices there are, what they told."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import click

from edgekit.fleet import wording
from edgekit.fleet.client import DEFAULT_URL, Client, show
from edgekit.fleet.listing import table

_coordinator = click.option(
    "--coordinator",
    "url",
    default=DEFAULT_URL,
    show_default=True,
    help="The coordinator's address.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command(epilog="Example: edgekit fleet devices --json")
@_coordinator
@_json
def devices(url: str, as_json: bool) -> None:
    """List devices: connection, profile, models and their state; those that were revoked too."""
    found = Client(url).get("/api/devices", dict[str, Any])
    rows = [_device(device) for device in found["devices"]]
    lines = table([("DEVICE", "CONNECTION", "PROFILE", "MODELS"), *rows])
    if not found["broker_connected"]:
        lines.append("the coordinator does not hear its broker: this is what it knew before")
    show(found, as_json=as_json, lines=lines if rows else ["no device has reported yet"])


@click.command(epilog="Example: edgekit fleet events --device berlin/cam-1 --kind rolled_back")
@click.option("--device", help="Only those of this device: ID or SITE/ID.")
@click.option("--kind", help="Only those of this kind, as in the third column.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="At most so many."
)
@_coordinator
@_json
def events(device: str | None, kind: str | None, limit: int, url: str, as_json: bool) -> None:
    """List what devices told of themselves, the newest first, by the time it came."""
    asked = {"device": device, "kind": kind, "limit": limit}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    found = Client(url).get(f"/api/events?{query}", dict[str, Any])
    rows = [_event(event) for event in found["events"]]
    lines = table([("RECEIVED", "LEVEL", "KIND", "DEVICE", "MESSAGE"), *rows])
    show(found, as_json=as_json, lines=lines if rows else ["no such event was reported yet"])


def _device(device: dict[str, Any]) -> tuple[str, ...]:
    models = [wording.model(name, model["state"]) for name, model in device["models"].items()]
    told = "; ".join(models) or "-"
    return device["device"], wording.seen(device), device["profile"] or "-", told


def _event(event: dict[str, Any]) -> tuple[str, ...]:
    received = wording.moment(event["received_ms"])
    return received, event["level"], event["kind"], event["device"], event["message"]
