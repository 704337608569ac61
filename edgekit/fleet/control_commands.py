"""`edgekit fleet command` and `edgekit fleet commands`: ask a device something; what was asked."""

from __future__ import annotations

import getpass
import os
import platform
import time
from collections.abc import Callable
from functools import update_wrapper
from typing import Any
from urllib.parse import quote

import click
import msgspec

from edgekit.control import MAX_TTL_S, Kind, Value
from edgekit.errors import FleetError
from edgekit.fleet.client import DEFAULT_URL, Client, say, show
from edgekit.fleet.listing import paragraph, table
from edgekit.numbers import FloatRange

_POLL_S = 0.3
_WAITING = ("waiting", "sent", "running")
# After its expiry the coordinator has a moment to say so; what runs by then is waited for.
_EXPIRY_ROOM_S = 5.0
# A device that is there has answered by then.
_SILENT_POLLS = 10
_HINTS = {
    "expired": "edgekit fleet devices shows whether the device is online",
    "sent": "edgekit fleet commands ID shows an answer that comes later",
    "interrupted": "nobody knows how far it came: look at the device, then ask anew",
}
_HINT = "docs/remote.md has every reason"
_coordinator = click.option(
    "--coordinator",
    "url",
    default=DEFAULT_URL,
    show_default=True,
    help="The coordinator's address.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_model = click.argument("model")


class Asked(msgspec.Struct, frozen=True):
    """What is said of every kind."""

    device: str
    ttl_s: float
    limit_s: float | None
    wait: bool
    url: str
    as_json: bool


def _asking(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that every kind has; the function takes them as one `Asked`."""

    @click.option(
        "--expires",
        "ttl_s",
        default=3600.0,
        show_default=True,
        type=FloatRange(min=1, max=MAX_TTL_S),
        help="Seconds that it counts; a device that is offline gets it when it is back by then.",
    )
    @click.option(
        "--limit",
        "limit_s",
        type=FloatRange(min=0, min_open=True, max=600),
        help="Seconds that it may run; the device has a limit of its own.",
    )
    @click.option("--wait", is_flag=True, help="Wait for its end; exit 8 where it was not done.")
    @_coordinator
    @_json
    @click.pass_obj
    def ask(
        device: str,
        /,
        ttl_s: float,
        limit_s: float | None,
        wait: bool,
        url: str,
        as_json: bool,
        **options: Any,
    ) -> None:
        function(Asked(device, ttl_s, limit_s, wait, url, as_json), **options)

    return update_wrapper(ask, function)


@click.group(epilog="Example: edgekit fleet command berlin/gate-1 logs --level warning --wait")
@click.argument("device")
@click.pass_context
def command(context: click.Context, device: str) -> None:
    """Ask DEVICE (ID or SITE/ID) for something, once.

    The command is signed, carried out at most once, and kept until the device has answered or it
    expires. One runs at a time on a device. Both sides keep a record of who asked.
    """
    context.obj = device


@command.command(epilog="Example: edgekit fleet command gate-1 logs --lines 50 --wait")
@click.option("--lines", default=200, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
@_asking
def logs(asked: Asked, lines: int, level: str) -> None:
    """The latest lines of the daemon's own log."""
    found = _ask(asked, "logs", {"lines": lines, "level": level})
    _finish(asked, found, lines=found["output"]["lines"] if found["output"] else [])


@command.command(epilog="Example: edgekit fleet command gate-1 diagnostics --wait")
@_asking
def diagnostics(asked: Asked) -> None:
    """Versions, configuration, models, disk, memory, heat, clock, link and certificate."""
    _run(asked, "diagnostics", {})


@command.command(epilog="Example: edgekit fleet command gate-1 benchmark lite0 --seconds 10 --wait")
@_model
@click.option("--seconds", default=5.0, show_default=True, type=FloatRange(min=0.1, max=30))
@_asking
def benchmark(asked: Asked, model: str, seconds: float) -> None:
    """Run the golden inputs of MODEL behind all other requests; refused while it is busy."""
    _run(asked, "benchmark", {"model": model, "seconds": seconds})


@command.command(epilog="Example: edgekit fleet command gate-1 reload lite0 --wait")
@click.argument("model", required=False)
@_asking
def reload(asked: Asked, model: str | None) -> None:
    """Close MODEL and open it anew; without MODEL, read the configuration anew."""
    _run(asked, "reload", {"model": model} if model else {})


@command.command(epilog="Example: edgekit fleet command gate-1 rollback lite0 --wait")
@_model
@_asking
def rollback(asked: Asked, model: str) -> None:
    """Go back to the version of MODEL that served before."""
    _run(asked, "rollback", {"model": model})


@command.command(epilog="Example: edgekit fleet command gate-1 cancel lite0 --wait")
@_model
@_asking
def cancel(asked: Asked, model: str) -> None:
    """End the update of MODEL that is under way."""
    _run(asked, "cancel", {"model": model})


@command.command("set-interval", epilog="Example: edgekit fleet command gate-1 set-interval 10")
@click.argument("seconds", required=False, type=FloatRange(min=1, max=86_400))
@_asking
def set_interval(asked: Asked, seconds: float | None) -> None:
    """Send telemetry every SECONDS, also after a restart; without, as the device is configured."""
    _run(asked, "set_interval", {"seconds": seconds} if seconds is not None else {})


@click.command(epilog="Example: edgekit fleet commands --device gate-1")
@click.argument("number", required=False)
@click.option("--device", help="Only those of this device: ID or SITE/ID.")
@_coordinator
@_json
def commands(number: str | None, device: str | None, url: str, as_json: bool) -> None:
    """List the latest commands with who asked and what came of it, or show one with its output."""
    client = Client(url)
    if number is not None:
        found = client.get(f"/api/commands/{number}", dict[str, Any])
        show(found, as_json=as_json, lines=[*_told(found), *_pretty(found["output"])])
        return
    query = f"?device={quote(device)}" if device else ""
    listed = client.get(f"/api/commands{query}", dict[str, Any])
    rows = [_row(item) for item in listed["commands"]]
    lines = table([("ASKED", "ID", "DEVICE", "STATE", "WHAT"), *rows])
    show(listed, as_json=as_json, lines=lines if rows else ["no command was sent yet"])


def _run(asked: Asked, kind: Kind, args: dict[str, Value]) -> None:
    found = _ask(asked, kind, args)
    _finish(asked, found, lines=_pretty(found["output"]))


def _ask(asked: Asked, kind: Kind, args: dict[str, Value]) -> dict[str, Any]:
    body = {
        "device": asked.device,
        "kind": kind,
        "args": args,
        "ttl_s": asked.ttl_s,
        "limit_s": asked.limit_s,
        "by": _who(),
    }
    client = Client(asked.url)
    found = client.post("/api/commands", body, dict[str, Any])
    polls, expires_s = 0, time.monotonic() + asked.ttl_s + _EXPIRY_ROOM_S
    while asked.wait and found["state"] in _WAITING:
        if found["state"] != "running" and time.monotonic() > expires_s:
            break
        time.sleep(_POLL_S)
        polls += 1
        if polls == _SILENT_POLLS:
            say([f"waiting; Ctrl-C leaves {found['id']} with the coordinator"])
        found = client.get(f"/api/commands/{found['id']}", dict[str, Any])
    return found


def _finish(asked: Asked, found: dict[str, Any], *, lines: list[str]) -> None:
    """Print what came of it. With --wait, lines go to stdout alone, so that they can be piped."""
    if asked.wait and not asked.as_json:
        say(_told(found))
    else:
        lines = [*_told(found), *lines]
    if asked.as_json or lines:
        show(found, as_json=asked.as_json, lines=lines)
    if asked.wait and found["state"] != "done":
        silent = f"no answer within the {asked.ttl_s:g} s that it counts"
        said = silent if found["state"] in _WAITING else _why(found)
        why = f": {said}" if said else ""
        raise FleetError(
            f"command {found['id']} for {found['device']} was not done ({found['state']}){why}",
            hint=_HINTS.get(found["state"], _HINT),
        )


def _who() -> str:
    """Who asks, for the records of both sides; the coordinator cannot check it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user on this machine, in a container for one
        user = str(os.getuid())
    return f"{user}@{platform.node()}"[:200]


def _told(found: dict[str, Any]) -> list[str]:
    """What is known of one command, as a sentence."""
    asked, number, device, state, what, about = _parts(found)
    return paragraph(f"{asked} {number} {device} {what}: {state}{about}")


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    """What is known of one command, as a row among others."""
    *columns, what, about = _parts(found)
    return *columns, f"{what}{about}"


def _parts(found: dict[str, Any]) -> tuple[str, ...]:
    """When it was asked, its id, of which device, how it stands, what for, and why and by whom."""
    asked = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(found["issued_ms"] / 1000))
    args = "".join(f" {name}={value}" for name, value in found["args"].items())
    why = f" ({_why(found)})" if _why(found) else ""
    about = f"{why}, asked by {found['by'] or '-'}"
    return asked, found["id"], found["device"], found["state"], f"{found['kind']}{args}", about


def _why(found: dict[str, Any]) -> str:
    return ": ".join(filter(None, (found["reason"], found["detail"])))


def _pretty(output: dict[str, Any] | None) -> list[str]:
    if output is None:
        return []
    return msgspec.json.format(msgspec.json.encode(output), indent=2).decode().splitlines()
