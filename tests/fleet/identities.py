"""A made fleet with devices that hold certificates, and brokers that keep them apart.

`Made` issues certificates as the enrolment office does, without its HTTP: what is tested with it is
what brokers do with them.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit import storage
from edgekit.clock import SystemClock
from edgekit.errors import LinkError
from edgekit.fleet import authority, broker_files
from edgekit.fleet.address import Address
from edgekit.fleet.authority import Authority, Subject
from edgekit.fleet.broker import Broker
from edgekit.fleet.folder import Facts, FleetFolder
from edgekit.fleet.founding import found
from edgekit.fleet.members import Issued, Members
from edgekit.link import Broker as BrokerUrl
from edgekit.link import MqttLink, Tls, Will
from edgekit.signing import SigningKey
from edgekit_converters.demo.processes import free_port
from tests.fleet.processes import until

SITE = "berlin"
DAY_MS = 86_400_000


class Made:
    """A fleet in a folder, and the means to put devices into it."""

    def __init__(self, path: Path) -> None:
        self.port = free_port()
        self.folder = FleetFolder(path / "fleet")
        facts = Facts(
            name="test",
            sites=(SITE,),
            broker=f"mqtts://127.0.0.1:{self.port}",
            repositories=("http://127.0.0.1:1/repository/",),
            coordinator="http://127.0.0.1:1",
        )
        self.clock = SystemClock()
        found(self.folder, facts, clock=self.clock)
        self.members = Members(self.folder.members)
        self.authority = Authority.read(self.folder.ca_key, self.folder.ca_certificate)
        self._devices = path / "devices"

    def enrol(self, device: str) -> Tls:
        """A new generation of a device, known to the broker's files."""
        with self.members.change() as change:
            subject = change.enrol(SITE, device, now_ms=self.clock.now_ms())
            tls, made = self.issue(subject, self.authority)
            change.add_certificate(subject, made)
        broker_files.write_users(self.folder, self.members, clock=self.clock)
        return tls

    def issue(
        self, subject: Subject, issuer: Authority, *, now_ms: int | None = None, days: int = 10
    ) -> tuple[Tls, Issued]:
        """A certificate, of whichever authority and time, that is on no record."""
        now_ms = self.clock.now_ms() if now_ms is None else now_ms
        key = SigningKey.generate()
        made = issuer.issue_device(subject, authority.public_of(key), days=days, now_ms=now_ms)
        folder = self._devices / f"{subject.device}-{made.serial_number:x}"
        tls = Tls(self.folder.ca_certificate, folder / "device.crt", folder / "device.key")
        storage.write(tls.key, key.pem(), mode=0o600)
        authority.write_certificate(tls.certificate, made)
        end_ms = round(made.not_valid_after_utc.timestamp() * 1000)
        pem = authority.pem(made)
        return tls, Issued(made.serial_number, key.public.id, pem, now_ms, end_ms)

    def revoke(self, device: str) -> Subject:
        with self.members.change() as change:
            subject = change.revoke(SITE, device, now_ms=self.clock.now_ms())
        assert subject is not None
        broker_files.write_users(self.folder, self.members, clock=self.clock)
        return subject


class Peer:
    """A client of the broker that remembers what it heard."""

    def __init__(
        self,
        port: int,
        tls: Tls,
        *,
        client_id: str,
        filters: tuple[str, ...] = (),
        will: Will | None = None,
    ) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._up = threading.Event()
        self.link = MqttLink(
            BrokerUrl("127.0.0.1", port, tls=True),
            client_id=client_id,
            filters=list(filters),
            on_message=lambda topic, payload: self.heard.append((topic, payload)),
            on_connect=self._up.set,
            will=will,
            tls=tls,
        )
        self.link.start()

    @property
    def topics(self) -> set[str]:
        return {topic for topic, _ in self.heard}

    def connected(self) -> Peer:
        assert self._up.wait(60), self.link.refused
        return self

    def refused(self) -> str:
        """Why it does not get in."""
        until(lambda: self.link.refused is not None)
        assert not self.link.connected
        return str(self.link.refused)

    def say(self, *topics: str, payload: bytes = b"said") -> None:
        for topic in topics:
            until(lambda topic=topic: self.link.publish(topic, payload))  # type: ignore[misc]

    def die(self) -> None:
        """Lose the connection without a word, so that the will is heard."""
        self.link.reconnect()

    def close(self) -> None:
        self.link.close()


@contextmanager
def nats(made: Made, state: Path) -> Iterator[Broker]:
    """The embedded broker with a fleet's devices, watched as `edgekit broker --fleet` does."""
    running = Broker(listen=Address("127.0.0.1", made.port), state=state, fleet=made.folder)
    watching = threading.Thread(target=_watch, args=(running,))
    watching.start()
    try:
        yield running
    finally:
        running.close()
        watching.join(10)


def _watch(running: Broker) -> None:
    with suppress(LinkError):  # it was closed, which is how this ends
        running.wait()


@contextmanager
def mosquitto(made: Made, state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Debian's mosquitto with the files that `fleet init` wrote, and its own pid file."""
    program = shutil.which("mosquitto")
    assert program is not None
    config = state / "mosquitto.conf"
    # Where tests run as root it would become a user who may not read the keys.
    written = (made.folder.broker / "mosquitto.conf").read_text()
    config.write_text(f"{written}user root\n")
    with (state / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", config], stderr=log)
    try:
        until(lambda: _listens(made.port) and (made.folder.broker / "mosquitto.pid").exists())
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def settle() -> None:
    """Wait until what was said would have been heard."""
    time.sleep(0.5)
