"""Commands for the identities of a fleet: `edgekit fleet init · token · members · revoke`."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit import storage, topics
from edgekit.clock import SystemClock
from edgekit.errors import MessageError, UsageError
from edgekit.fleet.client import show
from edgekit.fleet.listing import table
from edgekit.numbers import FloatRange

if TYPE_CHECKING:
    from edgekit.fleet.members import Member

_folder = click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_MOST_TOKENS = 10_000


@click.command(
    epilog="Example: edgekit fleet init fleet/ --site berlin --broker mqtts://mqtt.example.com:8883"
    " --repository https://bundles.example.com/ --coordinator http://fleet.example.com:8601"
)
@_folder
@click.option("--site", "sites", multiple=True, required=True, help="A site whose devices it has.")
@click.option("--broker", "broker_url", required=True, help="mqtts://HOST:PORT for devices.")
@click.option("--repository", "repositories", multiple=True, required=True, help="URL, ends in /.")
@click.option("--coordinator", "url", required=True, help="URL where devices enrol.")
@click.option("--broker-host", "hosts", multiple=True, help="Further names of the broker.")
@click.option("--name", default="fleet", show_default=True, help="What the fleet is called.")
@click.option("--days", default=90, show_default=True, help="Validity of device certificates.")
@_json
def init(
    folder: Path,
    sites: tuple[str, ...],
    broker_url: str,
    repositories: tuple[str, ...],
    url: str,
    hosts: tuple[str, ...],
    name: str,
    days: int,
    as_json: bool,
) -> None:
    """Make a fleet in DIR: keys, authority, broker configurations, an empty signed repository.

    Afterwards move DIR/offline to a medium of its own, and DIR/release to whoever releases.
    """
    import msgspec

    from edgekit.fleet.folder import Facts, FleetFolder
    from edgekit.fleet.founding import found
    from edgekit.fleet.starting import broker_command, coordinator_command

    try:
        facts = msgspec.convert(
            {
                "format": 1,
                "name": name,
                "sites": sites,
                "broker": broker_url,
                "repositories": repositories,
                "coordinator": url,
                "certificate_days": days,
            },
            Facts,
        )
    except msgspec.ValidationError as e:
        raise UsageError(f"this cannot be a fleet: {e}") from e
    fleet = FleetFolder(folder)
    found(fleet, facts, clock=SystemClock(), hosts=hosts)
    document = {"fleet": str(folder), "facts": facts, "release_key": str(fleet.release_key)}
    lines = [
        f"{folder} holds the fleet {name!r}",
        f"move {fleet.offline} to a medium of its own, and {fleet.release} to whoever releases",
        f"{broker_command(folder)} starts its broker",
        f"{coordinator_command(folder, facts)} starts its coordinator",
    ]
    show(document, as_json=as_json, lines=lines)


@click.command(epilog="Example: edgekit fleet token fleet/ berlin/cam-1 --out tokens/")
@_folder
@click.argument("names", metavar="SITE/DEVICE...", nargs=-1, required=True)
@click.option("--count", type=click.IntRange(1, _MOST_TOKENS), help="NAME-1 to NAME-N.")
@click.option(
    "--hours",
    default=24.0,
    show_default=True,
    type=FloatRange(0.01, 8760.0),
    help="How long a token waits to be used.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="One file each, 0600."
)
@_json
def token(
    folder: Path,
    names: tuple[str, ...],
    count: int | None,
    hours: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make one-time tokens, each of which lets the device of its name enrol once.

    A token is a secret until it is used. Without --out it is printed; with it, it goes to the file
    SITE_DEVICE.token, and none that is there is replaced. Enrolling a name anew takes the rights of
    whatever had the name before.
    """
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.members import Members

    fleet = FleetFolder(folder)
    known = fleet.facts().sites
    wanted = [_parse(name, known) for name in _numbered(names, count)]
    if len(set(wanted)) != len(wanted):
        raise UsageError("a device is named twice")
    files = [] if out is None else [_token_file(out, site, device) for site, device in wanted]
    if there := [path for path in files if path.exists()]:
        raise UsageError(
            f"{there[0]} is there already, and no token was made",
            hint="remove it, or name another folder with --out",
        )
    clock = SystemClock()
    expires_ms = clock.now_ms() + round(hours * 3_600_000)
    made = Members(fleet.members).new_tokens(wanted, expires_ms=expires_ms, now_ms=clock.now_ms())
    tokens: list[dict[str, Any]] = []
    if out is not None:
        storage.make_folder(out, mode=0o700)
    for number, ((site, device), one) in enumerate(zip(wanted, made, strict=True)):
        entry: dict[str, Any] = {"device": f"{site}/{device}", "expires_at_ms": expires_ms}
        if out is None:
            entry["token"] = one.text
        else:
            path = files[number]
            storage.write(path, f"{one.text}\n".encode(), mode=0o600, exclusive=True)
            entry["file"] = str(path)
        tokens.append(entry)
    lines = table([(entry["device"], entry.get("token") or entry["file"]) for entry in tokens])
    show({"tokens": tokens}, as_json=as_json, lines=lines)


@click.command(epilog="Example: edgekit fleet members fleet/ --json")
@_folder
@_json
def members(folder: Path, as_json: bool) -> None:
    """List the devices that are enrolled, and until when their certificates are valid."""
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.members import Members

    fleet = FleetFolder(folder)
    fleet.facts()
    found = Members(fleet.members).every()
    lines = table([_row(entry) for entry in found])
    show(
        {"members": [entry._asdict() for entry in found]},
        as_json=as_json,
        lines=lines or ["no device is enrolled"],
    )


@click.command(epilog="Example: edgekit fleet revoke berlin/cam-1 --fleet fleet/")
@click.argument("name", metavar="SITE/DEVICE")
@click.option(
    "--fleet",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the fleet.",
)
@_json
def revoke(name: str, folder: Path, as_json: bool) -> None:
    """Cut a device off: its certificates, its tokens, its rights at the broker, its live session.

    Exits with 7 where the broker does not answer: the device is out of its files then, and a
    session that is open goes on until the broker has read them.
    """
    from edgekit.errors import LinkError
    from edgekit.fleet import broker_files
    from edgekit.fleet.eviction import evict
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.members import Members

    fleet, clock = FleetFolder(folder), SystemClock()
    site, device = _parse(name, fleet.facts().sites)
    record = Members(fleet.members)
    with record.change() as change:
        subject = change.revoke(site, device, now_ms=clock.now_ms())
    told = broker_files.write_users(fleet, record, clock=clock)
    session = evict(fleet, subject, clock=clock) if subject else "none"
    document = {"device": name, "told": told, "session": session}
    if session == "unreachable":
        raise LinkError(
            f"{name} is revoked, but the broker at {fleet.facts().broker} does not answer: "
            "a session that is open there goes on",
            hint=f"have the broker read {fleet.broker} again (SIGHUP), then repeat this command",
        )
    show(document, as_json=as_json, lines=[f"{name} is cut off (session: {session})"])


def _numbered(names: tuple[str, ...], count: int | None) -> list[str]:
    if count is None:
        return list(names)
    return [f"{name}-{number}" for name in names for number in range(1, count + 1)]


def _token_file(out: Path, site: str, device: str) -> Path:
    """Where a token goes; no id has a `_`, so that no two devices share a file."""
    return out / f"{site}_{device}.token"


def _parse(name: str, sites: tuple[str, ...]) -> tuple[str, str]:
    match = re.fullmatch(r"([^/]+)/([^/]+)", name)
    if match is None:
        raise UsageError(f"{name!r} is not SITE/DEVICE", hint="for example berlin/cam-1")
    try:
        site, device = topics.check_id(match[1], "site"), topics.check_id(match[2], "device")
    except MessageError as e:
        raise UsageError(e.message, hint=e.hint) from e
    if site not in sites:
        raise UsageError(f"this fleet has no site {site}", hint=f"it has {', '.join(sites)}")
    return site, device


def _row(entry: Member) -> tuple[str, str]:
    until = f"until {_day(entry.expires_ms)}"
    if entry.revoked_ms is not None:
        until = f"revoked on {_day(entry.revoked_ms)}"
    return f"{entry.site}/{entry.device}", f"enrolled {entry.generation}x, {until}"


def _day(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.timezone.utc).date().isoformat()
