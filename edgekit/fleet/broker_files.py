"""Broker files: keeps `DIR/broker/` in step with who belongs to the fleet, and brokers with it.

Whoever changed the members calls `write_users`; the files are made from the record under a lock,
so that of two at once the later one is right. A broker on this machine that was started with these
files is told by SIGHUP, through its pid file; the embedded one looks at the files by itself. NATS
then ends the sessions of who is not listed any more. mosquitto only stops to pass on what they
say, and refuses them at their next connection: `eviction` ends the session too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from edgekit import certificates, link, storage
from edgekit.clock import Clock
from edgekit.errors import StorageError
from edgekit.fleet import authority, broker_config
from edgekit.fleet.address import Address
from edgekit.fleet.authority import Authority
from edgekit.fleet.folder import Facts, FleetFolder
from edgekit.fleet.members import Members
from edgekit.signing import SigningKey

log = logging.getLogger(__name__)

# The program that a pid file must belong to, so that no stranger with a used number is told.
_PROGRAMS = {"nats.pid": "nats-server", "mosquitto.pid": "mosquitto"}
# Certificates of coordinator and broker are made anew when a third of their time is left.
_RENEW_FROM = 2 / 3


def write_configuration(folder: FleetFolder, facts: Facts) -> None:
    """Write what does not change with the members: `nats.conf`, `mosquitto.conf`, `ca.crt`."""
    port = link.Broker.parse(facts.broker).port
    listen = Address("0.0.0.0", port)  # noqa: S104 - mutual TLS is what lets anybody in
    here = folder.broker.absolute()
    nats = broker_config.nats(
        listen=listen, tls=here, store=here / "nats", log=None, users=broker_config.NATS_USERS
    )
    pid_file = f'pid_file: "{here / "nats.pid"}"\n'
    storage.write(folder.broker / broker_config.NATS, (pid_file + nats).encode())
    mosquitto = broker_config.mosquitto(listen=listen, folder=here)
    storage.write(folder.broker / broker_config.MOSQUITTO, mosquitto.encode())
    storage.write(folder.broker / broker_config.AUTHORITY, folder.trust_ca.read_bytes())


def write_users(folder: FleetFolder, members: Members, *, clock: Clock) -> list[str]:
    """Write who may connect and what each may do; the programs that were told to read it."""
    issuer = Authority.read(folder.ca_key, folder.ca_certificate)
    now_ms = clock.now_ms()
    with _alone(folder):
        rights = broker_config.everyone(members.current())
        revoked = issuer.revocations(members.revoked(now_ms=now_ms), now_ms=now_ms)
        storage.write(folder.broker / broker_config.REVOCATIONS, revoked)
        # mosquitto warns of an access list that everybody can read.
        _replace(folder.broker / broker_config.ACL, broker_config.mosquitto_acl(rights))
        _replace(folder.broker / broker_config.NATS_USERS, broker_config.nats_users(rights))
        return tell(folder)


def tell(folder: FleetFolder) -> list[str]:
    """Have the brokers of this machine that use these files read them again; which ones."""
    told = []
    for file, program in _PROGRAMS.items():
        pid = _pid(folder.broker / file, program)
        if pid is None:
            continue
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            continue
        except PermissionError:
            log.error("broker cannot be told to read its files again", extra={"program": program})
            continue
        told.append(program)
    return told


def renew_services(folder: FleetFolder, *, hosts: tuple[str, ...], clock: Clock) -> bool:
    """Make certificates of coordinator and broker anew where they near their end; whether any was.

    Args:
        hosts: names of the broker, for a certificate that is made the first time.
    """
    issuer = Authority.read(folder.ca_key, folder.ca_certificate)
    now_ms = clock.now_ms()
    renewed = False
    if _is_due(folder.client_certificate, now_ms):
        key = SigningKey.read(folder.client_key)
        made = issuer.issue_coordinator(key, now_ms=now_ms)
        authority.write_certificate(folder.client_certificate, made)
        renewed = True
    if _is_due(folder.broker_certificate, now_ms):
        if folder.broker_certificate.exists():
            hosts = authority.hosts_of(certificates.read(folder.broker_certificate))
        key = SigningKey.read(folder.broker_key)
        made = issuer.issue_broker(key, hosts=hosts, now_ms=now_ms)
        authority.write_certificate(folder.broker_certificate, made)
        tell(folder)
        renewed = True
    return renewed


def _replace(path: Path, text: str) -> None:
    """Write a file where it differs: a broker that watches it reads it again for that."""
    if not path.exists() or path.read_text() != text:
        storage.write(path, text.encode(), mode=0o600)


def _is_due(path: Path, now_ms: int) -> bool:
    if not path.exists():
        return True
    held = certificates.read(path)
    start, end = held.not_valid_before_utc.timestamp(), held.not_valid_after_utc.timestamp()
    return now_ms / 1000 > start + _RENEW_FROM * (end - start)


def _pid(path: Path, program: str) -> int | None:
    """The process of a pid file, if it is that program."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(path.read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() == program:
            return pid
    return None


@contextlib.contextmanager
def _alone(folder: FleetFolder) -> Iterator[None]:
    path = folder.broker / ".lock"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise StorageError(f"{path} cannot be written: {e.strerror}") from e
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
