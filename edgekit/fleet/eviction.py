"""Eviction: ends a live session of a device that was revoked, whatever broker it is at.

The authority can make a certificate for the device's own subject. Who connects with it learns from
the broker whether that subject is still let in (NATS: not once it has read its users again, and
then it has ended the session too), and where it is, takes the session over by its client id, which
mosquitto takes from the subject. The device cannot come back: its own certificates are revoked.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgekit import link, storage
from edgekit.clock import Clock
from edgekit.fleet import authority, broker
from edgekit.fleet.authority import Authority, Subject
from edgekit.fleet.folder import FleetFolder
from edgekit.link import Tls
from edgekit.signing import SigningKey

Outcome = Literal["refused", "taken_over", "unreachable"]

_TIMEOUT_S = 5.0
# A broker reads its files again within this time; until then NATS lets the subject in.
_SETTLE_S = 0.5
_ATTEMPTS = 5


def evict(
    folder: FleetFolder,
    subject: Subject,
    *,
    clock: Clock,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """End the session of a subject that was taken out of the broker's files.

    Returns:
        `refused`: the broker does not know the subject any more, and has no session of it.
        `taken_over`: the broker lets the subject in, and this took the place of its session.
        `unreachable`: the broker did not answer, so a session that there is goes on.
    """
    outcome: Outcome = "unreachable"
    at = link.Broker.parse(folder.facts().broker)
    with tempfile.TemporaryDirectory(prefix="edgekit-evict-") as made:
        context = link.tls_context(_credentials(Path(made), folder, subject, clock=clock))
    for attempt in range(_ATTEMPTS):
        if attempt:
            sleep(_SETTLE_S)
        found = broker.knock((at.host, at.port), timeout_s=_TIMEOUT_S, tls=context)
        outcome = "taken_over" if found == "accepted" else found
        if outcome == "refused":
            break
    return outcome


def _credentials(folder: Path, fleet: FleetFolder, subject: Subject, *, clock: Clock) -> Tls:
    issuer = Authority.read(fleet.ca_key, fleet.ca_certificate)
    key = SigningKey.generate()
    made = issuer.issue_device(subject, authority.public_of(key), days=1, now_ms=clock.now_ms())
    tls = Tls(fleet.ca_certificate, folder / "one.crt", folder / "one.key")
    storage.write(tls.key, key.pem(), mode=0o600)
    authority.write_certificate(tls.certificate, made)
    return tls
