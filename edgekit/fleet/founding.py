"""Founding: makes a fleet's folder: keys, authority, broker configurations and an empty repository.

Nothing that exists is replaced. `fleet.json` is written last, and what holds it is a whole fleet; a
folder that was not made to its end holds none, is told as such, and is to be removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit import link, storage
from edgekit.clock import Clock
from edgekit.errors import FleetError
from edgekit.fleet import authority, broker_files
from edgekit.fleet.authority import Authority
from edgekit.fleet.folder import Facts, FleetFolder
from edgekit.fleet.members import Members
from edgekit.signing import SigningKey


def found(folder: FleetFolder, facts: Facts, *, clock: Clock, hosts: Sequence[str] = ()) -> None:
    """Make a fleet in a folder that is missing or empty.

    Args:
        hosts: further names and addresses of the broker, beside the one in `facts.broker`.

    Raises:
        FleetError: something is in the folder already.
        StorageError: the folder cannot be written.
    """
    from edgekit.fleet import tuf  # what signs repositories is needed here alone

    _require_empty(folder)
    for private in (folder.offline, folder.release, folder.coordinator, folder.broker):
        storage.make_folder(private, mode=0o700)
    storage.make_folder(folder.trust)
    for path in (*folder.root_keys, folder.targets_key, folder.online_key):
        _write_key(path, SigningKey.generate())
    release, control = SigningKey.generate(), SigningKey.generate()
    _write_key(folder.release_key, release)
    _write_key(folder.control_key, control)
    for path in (folder.release_pub, folder.trust_release):
        storage.write(path, release.public.pem, exclusive=True)
    for path in (folder.control_pub, folder.trust_control):
        storage.write(path, control.public.pem, exclusive=True)
    issuer, issuer_key = Authority.make(name=facts.name, now_ms=clock.now_ms())
    _write_key(folder.ca_key, issuer_key)
    for path in (folder.ca_certificate, folder.trust_ca):
        authority.write_certificate(path, issuer.certificate)
    _write_key(folder.client_key, SigningKey.generate())
    _write_key(folder.broker_key, SigningKey.generate())
    names = (link.Broker.parse(facts.broker).host, *hosts)
    broker_files.renew_services(folder, hosts=names, clock=clock)
    broker_files.write_configuration(folder, facts)
    broker_files.write_users(folder, Members(folder.members), clock=clock)
    tuf.make(folder, clock=clock)
    folder.write_facts(facts)


def _require_empty(folder: FleetFolder) -> None:
    present = sorted(path.name for path in folder.path.glob("*")) if folder.path.exists() else []
    if not present:
        return
    if folder.facts_file.exists():
        raise FleetError(f"{folder.path} holds a fleet already", hint="name another folder")
    raise FleetError(
        f"{folder.path} is not empty, and no whole fleet: it holds {', '.join(present[:8])}",
        hint="name another folder, or remove what an interrupted init left there",
    )


def _write_key(path: Path, key: SigningKey) -> None:
    storage.write(path, key.pem(), mode=0o600, exclusive=True)
