"""`edgekit round`: start and watch series of federated rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.errors import FleetError, UsageError
from edgekit.fleet.client import DEFAULT_URL, Client, show
from edgekit.fleet.listing import paragraph
from edgekit.fleet.watching import follow
from edgekit.numbers import FloatRange

_coordinator = click.option(
    "--coordinator",
    "url",
    default=DEFAULT_URL,
    show_default=True,
    help="The coordinator's address.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("round", epilog="Example: edgekit round list")
def round_() -> None:
    """Improve a model by federated rounds; data never leaves a device."""


@round_.command(
    epilog="Example: edgekit round start --model digits --source digits.onnx --data heldout.npz "
    "--profile generic-x86_64 --count 5 --watch"
)
@click.option("--model", required=True)
@click.option("--source", required=True, type=_file, help="The float model the base came from.")
@click.option("--data", required=True, type=_file, help="Held-out samples with labels (.npz).")
@click.option("--profile", required=True, help="Of the devices that train, and of the result.")
@click.option("--recipe", type=_file, help="The recipe the base was built with.")
@click.option("--site", help="Whose devices take part; needed where there are several sites.")
@click.option("--count", default=5, show_default=True, type=click.IntRange(1, 1000))
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1, 1000))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1, 65536))
@click.option(
    "--learning-rate",
    default=0.05,
    show_default=True,
    type=FloatRange(0, 100, min_open=True),
)
@click.option(
    "--min-updates",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="A round with fewer good updates fails, and nothing changes.",
)
@click.option(
    "--timeout",
    "timeout_s",
    default=120.0,
    show_default=True,
    type=FloatRange(0, 86400, min_open=True),
    help="Seconds that a round stays open.",
)
@click.option("--rollout", is_flag=True, help="Roll the result out when it is good.")
@click.option("--watch", is_flag=True, help="Wait for the end; exit 8 where it was not done.")
@_coordinator
@_json
def start(
    source: Path,
    data: Path,
    recipe: Path | None,
    site: str | None,
    watch: bool,
    url: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Start a series of rounds from the newest published bundle that can be trained.

    After the last round the weights go through `edgekit build`: the result is published only if
    its metric is at least that of the bundle the series began with.
    """
    client = Client(url)
    body = {
        **options,
        "site": site or _only_site(client),
        "source": _send(client, source),
        "data": _send(client, data),
        "recipe": _send(client, recipe) if recipe else None,
    }
    found = client.post("/api/rounds", body, dict[str, Any])
    if watch:
        found = _watch(client, found)
    _show(found, as_json=as_json)
    if watch and found["state"] != "done":
        raise FleetError(
            f"series {found['id']} is {found['state']}: {found['reason']}",
            hint=f"edgekit round show {found['id']} lists its rounds",
        )


@round_.command("list", epilog="Example: edgekit round list --json")
@_coordinator
@_json
def list_(url: str, as_json: bool) -> None:
    """List the latest series, the newest first."""
    found = Client(url).get("/api/rounds", dict[str, Any])
    lines = [line for item in found["series"] for line in paragraph(_line(item))]
    show(found, as_json=as_json, lines=lines or ["there is no series of rounds yet"])


@round_.command("show", epilog="Example: edgekit round show 2")
@click.argument("number", type=int)
@_coordinator
@_json
def show_(number: int, url: str, as_json: bool) -> None:
    """Show series NUMBER with its rounds."""
    _show(Client(url).get(f"/api/rounds/{number}", dict[str, Any]), as_json=as_json)


def _only_site(client: Client) -> str:
    sites = client.get("/api/overview", dict[str, Any])["sites"]
    if len(sites) != 1:
        raise UsageError(
            f"the coordinator keeps several sites: {', '.join(sites)}", hint="name one with --site"
        )
    return str(sites[0])


def _send(client: Client, file: Path) -> str:
    from edgekit.bundle import describe

    name = f"{describe(file).sha256}{file.suffix.lower()}"
    client.send_file(f"/api/files/{name}", file, dict[str, Any])
    return name


def _watch(client: Client, found: dict[str, Any]) -> dict[str, Any]:
    return follow(
        client,
        f"/api/rounds/{found['id']}",
        found,
        going=("training", "building"),
        told=_told,
        what=f"series {found['id']}",
        command=f"edgekit round show {found['id']}",
    )


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    show(found, as_json=as_json, lines=[line for lines in _told(found) for line in lines])


def _told(found: dict[str, Any]) -> list[list[str]]:
    """What there is to say of a series, and of each of its rounds."""
    rounds = [paragraph(_round_line(item), indent="  ") for item in found["rounds"]]
    return [paragraph(_line(found)), *rounds]


def _line(found: dict[str, Any]) -> str:
    reason = f": {found['reason']}" if found["reason"] else ""
    closed = sum(item["state"] == "closed" for item in found["rounds"])
    return (
        f"series {found['id']}: {found['model']} from {found['base_version']} {found['state']}"
        f"{reason} ({closed} of {found['count']} rounds)"
    )


def _round_line(item: dict[str, Any]) -> str:
    if item["state"] == "open":
        return f"round {item['number']}: open, {len(item['participants'])} devices asked"
    loss = "no loss"
    if item["loss_before"] is not None:
        loss = f"loss {item['loss_before']:.4f} before, {item['loss_after']:.4f} after training"
    refused = "".join(f"; {device}: {why}" for device, why in item["refused"].items())
    return (
        f"round {item['number']}: {item['accepted']} updates on {item['samples']} samples, "
        f"{loss}, {item['up_bytes'] / 1000:.1f} kB up{refused}"
    )
