"""Folder: everything a fleet is, as files; who holds which part of it decides what he may do.

`offline/` and `release/` are moved to whoever may sign, `coordinator/` and `broker/` to the
machines of those names, `repository/` to any web server; `trust/` is public. A folder that is
there already is never replaced, and what is missing in one is told by its path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from edgekit import storage
from edgekit.errors import ConfigError, FleetError
from edgekit.link import Broker, Tls
from edgekit.messages import Id
from edgekit.structs import Strict

ROOT_KEYS = 3
MAX_FACTS_BYTES = 1 << 20


def _check_url(url: str, *, what: str, folder: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{what} {url!r} is not an http or https URL")
    if folder and not parts.path.endswith("/"):
        raise ValueError(f"{what} {url!r} must end in /")


class Facts(Strict, frozen=True, kw_only=True):
    """`fleet.json`: what is public of a fleet.

    Attributes:
        sites: sites whose devices belong to it.
        broker: `mqtts://HOST:PORT`, as devices reach it.
        repositories: URLs of the signed repository and its mirrors; each ends in `/`.
        coordinator: URL at which devices enrol and renew their certificates.
        certificate_days: how long a device's certificate is valid.
    """

    format: Literal[1] = 1
    name: Id
    sites: Annotated[tuple[Id, ...], msgspec.Meta(min_length=1)]
    broker: str
    repositories: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    coordinator: str
    certificate_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = 90

    def __post_init__(self) -> None:
        try:
            broker = Broker.parse(self.broker)
        except ConfigError as e:
            raise ValueError(e.message) from e
        if not broker.tls:
            raise ValueError(f"broker {self.broker!r} must be mqtts://HOST:PORT")
        for url in self.repositories:
            _check_url(url, what="repository", folder=True)
        _check_url(self.coordinator, what="coordinator", folder=False)

    @property
    def hosts(self) -> frozenset[str]:
        """Names under which devices address the coordinator and the repositories."""
        urls = (self.coordinator, *self.repositories)
        return frozenset(filter(None, (urlsplit(url).hostname for url in urls)))


class FleetFolder:
    """The paths of a fleet's folder. Making one reads nothing; `facts` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts_file = path / "fleet.json"
        self.offline = path / "offline"
        self.root_keys = tuple(self.offline / f"root-{n}.key" for n in range(1, ROOT_KEYS + 1))
        self.targets_key = self.offline / "targets.key"
        self.release = path / "release"
        self.release_key = self.release / "release.key"
        self.release_pub = self.release / "release.pub"
        self.coordinator = path / "coordinator"
        self.control_key = self.coordinator / "control.key"
        self.control_pub = self.coordinator / "control.pub"
        self.online_key = self.coordinator / "online.key"
        self.ca_key = self.coordinator / "ca.key"
        self.ca_certificate = self.coordinator / "ca.crt"
        self.client_key = self.coordinator / "client.key"
        self.client_certificate = self.coordinator / "client.crt"
        self.members = self.coordinator / "devices.sqlite"
        self.broker = path / "broker"
        self.broker_key = self.broker / "server.key"
        self.broker_certificate = self.broker / "server.crt"
        self.repository = path / "repository"
        self.metadata = self.repository / "metadata"
        self.targets = self.repository / "targets"
        self.trust = path / "trust"
        self.trust_root = self.trust / "root.json"
        self.trust_ca = self.trust / "ca.crt"
        self.trust_control = self.trust / "control.pub"
        self.trust_release = self.trust / "release.pub"

    @property
    def client_tls(self) -> Tls:
        """With what the coordinator connects to the broker."""
        return Tls(self.ca_certificate, self.client_certificate, self.client_key)

    def facts(self) -> Facts:
        """What is public of this fleet.

        Raises:
            FleetError: no fleet was made here, or not to its end.
            ConfigError: the file has a wrong or unknown field.
        """
        try:
            with self.facts_file.open("rb") as file:
                raw = file.read(MAX_FACTS_BYTES)
        except FileNotFoundError as e:
            raise FleetError(
                f"{self.path} holds no fleet: it has no {self.facts_file.name}",
                hint="edgekit fleet init DIR makes one; a half-made one is removed first",
            ) from e
        except OSError as e:
            raise FleetError(f"{self.facts_file} cannot be read: {e.strerror}") from e
        try:
            return msgspec.json.decode(raw, type=Facts)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise ConfigError(f"{self.facts_file}: {e}") from e

    def write_facts(self, facts: Facts) -> None:
        """Write `fleet.json`, which is never replaced."""
        text = msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n"
        storage.write(self.facts_file, text, exclusive=True)
