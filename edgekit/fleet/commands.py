"""Commands of the fleet side. What is heavy is imported inside the command that needs it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import click

from edgekit import logs, storage
from edgekit.errors import UsageError
from edgekit.fleet import (
    control_commands,
    device_commands,
    identity_commands,
    repository_commands,
)
from edgekit.fleet.client import show
from edgekit.fleet.publish_command import publish
from edgekit.fleet.rollout_commands import rollout
from edgekit.fleet.round_commands import round_

__all__ = ["broker", "coordinator", "fleet", "publish", "rollout", "round_"]

DEFAULT_SITE = "default"
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"

_fleet = click.option(
    "--fleet",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of `edgekit fleet init`: mutual TLS, and each device has its own rights.",
)


@click.command(epilog="Example: edgekit broker --fleet fleet/ --listen 0.0.0.0:8883")
@click.option("--listen", help="HOST:PORT of MQTT. [127.0.0.1:1883, or the fleet's port]")
@_fleet
@click.option("--state", type=click.Path(path_type=Path), help="Folder of store, log, settings.")
@click.option("--insecure", is_flag=True, help="Let other machines connect, without a password.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when it is ready.")
def broker(
    listen: str | None, folder: Path | None, state: Path | None, insecure: bool, as_json: bool
) -> None:
    """Run the embedded MQTT broker in the foreground; it keeps its messages on disk.

    With --fleet it lets in whom the fleet has enrolled, and no one else; devices that come and go
    are known within a second. Without, everybody may do everything. It ends with this command.
    """
    from edgekit.fleet.address import Address
    from edgekit.fleet.broker import Broker
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.starting import broker_told
    from edgekit.link import Broker as Url

    _logs()
    state = state or storage.data_home() / "broker"
    if folder is None:
        address = Address.parse(listen or "127.0.0.1:1883")
        address.require_loopback(what="the broker", insecure=insecure)
        running = Broker(listen=address, state=state)
    else:
        fleet = FleetFolder(folder)
        # Every address: the certificates of both sides keep strangers out.
        everywhere = f"0.0.0.0:{Url.parse(fleet.facts().broker).port}"
        running = Broker(listen=Address.parse(listen or everywhere), state=state, fleet=fleet)
    try:
        with _until_signal():
            document = {"url": running.url, "state": str(running.state), "pid": running.pid}
            told = broker_told(running.url, running.listen, for_fleet=folder is not None)
            show(document, as_json=as_json, lines=told)
            running.wait()
    except _Ended:
        logging.getLogger(__name__).info("broker ends")
    finally:
        running.close()


@click.command(epilog="Example: edgekit coordinator --fleet fleet/ --devices 0.0.0.0:8601")
@click.option("--listen", default="127.0.0.1:8600", show_default=True, help="HOST:PORT of HTTP.")
@_fleet
@click.option(
    "--devices", help="HOST:PORT of a second socket that only enrols, renews and serves bundles."
)
@click.option("--broker", "broker_url", help=f"[{DEFAULT_BROKER}, or the fleet's]")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of store and repository.")
@click.option("--site", "sites", multiple=True, help=f"Sites it keeps. [{DEFAULT_SITE}, or all]")
@click.option(
    "--trust",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public keys whose bundles it takes, beside those in trust.d.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Private key that signs the results of rounds; its bundles are trusted too.",
)
@click.option("--allow-host", "hosts", multiple=True, help="Further names clients may use.")
@click.option("--insecure", is_flag=True, help="Let other machines connect, without a password.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when it is ready.")
def coordinator(
    listen: str,
    folder: Path | None,
    devices: str | None,
    broker_url: str | None,
    state: Path | None,
    sites: tuple[str, ...],
    trust: tuple[Path, ...],
    key: Path | None,
    hosts: tuple[str, ...],
    insecure: bool,
    as_json: bool,
) -> None:
    """Run the coordinator: it stores what devices report, and serves API, bundles and dashboard.

    With --fleet it speaks to the broker over mutual TLS, enrols devices, renews their certificates
    and serves the signed repository; without, it is for a demo on one machine.
    """
    from edgekit import signing, topics
    from edgekit.fleet import serve
    from edgekit.fleet.address import Address
    from edgekit.fleet.coordinator import Settings
    from edgekit.fleet.folder import FleetFolder
    from edgekit.fleet.starting import coordinator_told

    _logs()
    address = Address.parse(listen)
    address.require_loopback(what="the coordinator", insecure=insecure)
    trusted = signing.trusted_keys(trust)
    fleet = FleetFolder(folder.absolute()) if folder else None
    facts = fleet.facts() if fleet else None
    sites = sites or (facts.sites if facts else (DEFAULT_SITE,))
    if fleet is not None:
        trusted.append(signing.PublicKey.read(fleet.trust_release))
    elif devices is not None:
        raise UsageError("--devices is for enrolled devices", hint="add --fleet DIR")
    if key is not None:
        own = signing.SigningKey.read(key).public
        trusted.append(own)
        logging.getLogger(__name__).warning(
            "demo mode: one key signs the results of rounds and their releases",
            extra={"key": own.id[:16]},
        )
    settings = Settings(
        broker=broker_url or (facts.broker if facts else DEFAULT_BROKER),
        fleet=fleet,
        state=(state or storage.data_home() / "coordinator").absolute(),
        sites=tuple(
            topics.check_id(site, "site")
            for site in sites or (facts.sites if facts else (DEFAULT_SITE,))
        ),
        trusted=trusted,
        key=key.absolute() if key else None,
    )

    def ready(found: Address, public: Address | None) -> None:
        url = f"http://{found}"
        document = {
            "url": url,
            "repository": f"{url}/repository/",
            "devices": f"http://{public}" if public else None,
            "broker": settings.broker,
            "sites": settings.sites,
            "state": str(settings.state),
            "trusted": [item.id for item in trusted],
            "pid": os.getpid(),
        }
        told = coordinator_told(found, public, folder=folder, facts=facts)
        show(document, as_json=as_json, lines=told)

    public = Address.parse(devices) if devices else None
    serve.run(settings, listen=address, devices=public, hosts=hosts, on_ready=ready)


@click.group(epilog="Example: edgekit fleet devices")
def fleet() -> None:
    """Make a fleet, let devices in and out, show them."""


for _command in (
    identity_commands.init,
    identity_commands.token,
    identity_commands.members,
    identity_commands.revoke,
    control_commands.command,
    control_commands.commands,
    device_commands.devices,
    device_commands.events,
    repository_commands.refresh,
    repository_commands.rotate_root,
):
    fleet.add_command(_command)


def _logs() -> None:
    logs.configure(json_lines=not sys.stderr.isatty())


class _Ended(Exception):
    """SIGTERM or SIGINT came."""


class _until_signal:  # noqa: N801 - reads as a statement
    """Within the block, SIGTERM and SIGINT raise `_Ended`."""

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    @staticmethod
    def _raise(_number: int, _frame: object) -> None:
        raise _Ended
