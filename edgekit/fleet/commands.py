"""Commands of the fleet side. What is heavy is imported inside the command that needs it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from edgekit import logs, storage
from edgekit.fleet.client import DEFAULT_URL, Client, show
from edgekit.fleet.rollout_commands import rollout
from edgekit.fleet.round_commands import round_

__all__ = ["broker", "coordinator", "fleet", "publish", "rollout", "round_"]

DEFAULT_SITE = "default"


@click.command(epilog="Example: edgekit broker --listen 127.0.0.1:1883")
@click.option("--listen", default="127.0.0.1:1883", show_default=True, help="HOST:PORT of MQTT.")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of store, log, settings.")
@click.option("--insecure", is_flag=True, help="Let other machines connect, without a password.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when it is ready.")
def broker(listen: str, state: Path | None, insecure: bool, as_json: bool) -> None:
    """Run the embedded MQTT broker in the foreground; it keeps its messages on disk.

    Everything it needs is in its state folder. It ends with this command.
    """
    from edgekit.fleet.address import Address
    from edgekit.fleet.broker import Broker

    _logs()
    address = Address.parse(listen)
    address.require_loopback(what="the broker", insecure=insecure)
    running = Broker(listen=address, state=state or storage.data_home() / "broker")
    try:
        with _until_signal():
            document = {"url": running.url, "state": str(running.state), "pid": running.pid}
            show(document, as_json=as_json, lines=[f"broker ready at {running.url}"])
            running.wait()
    except _Ended:
        logging.getLogger(__name__).info("broker ends")
    finally:
        running.close()


@click.command(epilog="Example: edgekit coordinator --broker mqtt://127.0.0.1:1883 --site berlin")
@click.option("--listen", default="127.0.0.1:8600", show_default=True, help="HOST:PORT of HTTP.")
@click.option("--broker", "broker_url", default="mqtt://127.0.0.1:1883", show_default=True)
@click.option("--state", type=click.Path(path_type=Path), help="Folder of store and repository.")
@click.option("--site", "sites", multiple=True, help=f"Sites it keeps. [{DEFAULT_SITE}]")
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
    broker_url: str,
    state: Path | None,
    sites: tuple[str, ...],
    trust: tuple[Path, ...],
    key: Path | None,
    hosts: tuple[str, ...],
    insecure: bool,
    as_json: bool,
) -> None:
    """Run the coordinator: it stores what devices report, and serves API, bundles and dashboard."""
    from edgekit import signing, topics
    from edgekit.fleet import serve
    from edgekit.fleet.address import Address
    from edgekit.fleet.coordinator import Settings

    _logs()
    address = Address.parse(listen)
    address.require_loopback(what="the coordinator", insecure=insecure)
    trusted = signing.trusted_keys(trust)
    if key is not None:
        own = signing.SigningKey.read(key).public
        trusted.append(own)
        logging.getLogger(__name__).warning(
            "demo mode: one key signs the results of rounds and their releases",
            extra={"key": own.id[:16]},
        )
    settings = Settings(
        broker=broker_url,
        state=(state or storage.data_home() / "coordinator").absolute(),
        sites=tuple(topics.check_id(site, "site") for site in sites or (DEFAULT_SITE,)),
        trusted=trusted,
        key=key.absolute() if key else None,
    )

    def ready(found: Address) -> None:
        url = f"http://{found}"
        document = {
            "url": url,
            "repository": f"{url}/repository/",
            "broker": broker_url,
            "sites": settings.sites,
            "state": str(settings.state),
            "trusted": [item.id for item in trusted],
            "pid": os.getpid(),
        }
        show(document, as_json=as_json, lines=[f"coordinator ready, dashboard at {url}/"])

    serve.run(settings, listen=address, hosts=hosts, on_ready=ready)


@click.group()
def fleet() -> None:
    """Show the devices of a fleet."""


@fleet.command(epilog="Example: edgekit fleet devices --json")
@click.option("--coordinator", "url", default=DEFAULT_URL, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def devices(url: str, as_json: bool) -> None:
    """List devices: connection, profile, models and their state."""
    found = Client(url).get("/api/devices", dict[str, Any])
    lines = [_device_line(device) for device in found["devices"]]
    show(found, as_json=as_json, lines=lines or ["no device has reported yet"])


@click.command(epilog="Example: edgekit publish lite0-1.1.0-jetson.edge")
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--coordinator", "url", default=DEFAULT_URL, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def publish(bundle: Path, url: str, as_json: bool) -> None:
    """Put BUNDLE into the fleet's repository; the coordinator checks and verifies it first."""
    answer = Client(url).send_file("/api/bundles", bundle, dict[str, Any])
    found = answer["bundle"]
    said = "published" if answer["new"] else "was published already"
    line = f"{found['name']} {found['version']} for {found['profile']} {said}: {found['digest']}"
    show(answer, as_json=as_json, lines=[line])


def _device_line(device: dict[str, Any]) -> str:
    models = [
        f"{name} {model['state'].get('version') or '-'} ({model['state'].get('state', 'idle')})"
        for name, model in device["models"].items()
    ]
    state = "online " if device["online"] else "offline"
    return f"{device['device']:<30} {state}  {device['profile']:<20} {', '.join(models) or '-'}"


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
