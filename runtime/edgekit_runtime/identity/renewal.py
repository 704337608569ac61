"""Renewal: gets a new certificate for a new key before the old one ends, and tells what is wrong.

The new identity replaces the old one as a whole, and the link connects anew with it, so that it has
proven itself while the old one would still have worked. A device whose certificate ended goes on
serving; it only says so, and needs a new token.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
from cryptography import x509

from edgekit import certificates, enrolment, envelope
from edgekit.clock import Clock
from edgekit.enrolment import RenewalAsk, RenewalRequest, Renewed
from edgekit.errors import EdgekitError, MessageError, UntrustedError
from edgekit.signing import PublicKey, SigningKey
from edgekit_runtime.identity import files, validity
from edgekit_runtime.identity.identity import (
    AUTHORITY,
    CERTIFICATE,
    CONTROL,
    FACTS,
    HTTPS,
    KEY,
    RELEASE,
    ROOT,
    Identity,
)
from edgekit_runtime.identity.office import Office
from edgekit_runtime.telemetry import Events

log = logging.getLogger(__name__)

_AGAIN_S = 3600.0
_CLOSE_S = 10.0
_TOLD = {
    "clock_wrong": "the clock shows a time before the device's certificate was made",
    "certificate_expired": "the certificate has expired: enrol again with a new token",
}


class Renewal:
    """Keeps one identity valid.

    Args:
        folder: of the identity.
        clock: wall clock for the certificate, monotonic for waiting.
        rng: spreads the renewals of many devices.
        events: hears `certificate_renewed`, `certificate_expired`, `clock_wrong`,
            `renewal_failed`, `identity_broken`, each when it becomes true.
        reconnect: has the link connect anew.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        rng: Random,
        events: Events,
        reconnect: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._spread = rng.random()
        self._events = events
        self._reconnect = reconnect
        self._told = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="identity", daemon=True)

    def start(self) -> None:
        """Take turns in a thread until `close`."""
        self._thread.start()

    def close(self, *, timeout_s: float = _CLOSE_S) -> None:
        """End the thread; a request that is on its way is left behind."""
        self._closing.set()
        self._thread.join(timeout_s)

    def turn(self) -> float:
        """Do what is due now; seconds until the next turn is wanted."""
        try:
            identity = Identity.read(self._folder)
        except EdgekitError as e:
            self._tell("identity_broken", e.with_hint)
            return _AGAIN_S
        now_ms = self._clock.now_ms()
        standing = validity.standing(identity.validity, now_ms=now_ms)
        if standing != "valid":
            self._tell(standing, _TOLD[standing])
            return validity.next_turn_s(
                identity.validity, now_ms=now_ms, spread=self._spread, failed=True
            )
        if now_ms < validity.due_at_ms(identity.validity, spread=self._spread):
            self._told = ""
            return self._wait(identity, failed=False)
        try:
            renew(identity, clock=self._clock)
        except EdgekitError as e:
            self._tell("renewal_failed", e.with_hint)
            return self._wait(identity, failed=True)
        self._told = ""
        renewed = Identity.read(self._folder)
        self._events(
            "certificate_renewed",
            f"the certificate of {renewed.name} was renewed",
            expires_at_ms=renewed.expires_at_ms,
        )
        self._reconnect()
        return self._wait(renewed, failed=False)

    def _wait(self, identity: Identity, *, failed: bool) -> float:
        now_ms = self._clock.now_ms()
        return validity.next_turn_s(
            identity.validity, now_ms=now_ms, spread=self._spread, failed=failed
        )

    def _tell(self, kind: str, message: str) -> None:
        if self._told != kind:
            self._told = kind
            self._events(kind, message, level="error")

    def _run(self) -> None:
        wait_s = 0.0
        while not self._closing.wait(wait_s):
            wait_s = self._turn_or_log()

    def _turn_or_log(self) -> float:
        try:
            return self.turn()
        except Exception:  # the next turn may fare better; the log has the traceback
            log.exception("renewal failed")
            return _AGAIN_S


def renew(identity: Identity, *, clock: Clock) -> None:
    """Replace an identity's key and certificate.

    Raises:
        LinkError: the coordinator does not answer.
        FleetError: it refuses: the certificate expired or was revoked.
        UntrustedError: what it gave is not a certificate for this device's new key, or nobody
            vouches for its own, over https.
        StorageError: the folder cannot be written.
    """
    folder = identity.folder
    present = certificates.read(folder / CERTIFICATE)
    key = files.pending_key(folder, f"{present.serial_number:x}")
    ask = msgspec.json.encode(RenewalAsk(csr=enrolment.request_for(key)))
    request = RenewalRequest(
        certificate=(folder / CERTIFICATE).read_text("ascii"),
        envelope=envelope.sign(ask, kind=enrolment.RENEWAL, key=SigningKey.read(folder / KEY)),
    )
    office = Office(identity.coordinator, clock, identity.https_ca)
    raw = office.post(enrolment.RENEW_PATH, msgspec.json.encode(request))
    made = enrolment.decode(raw, Renewed, limit_bytes=enrolment.MAX_ANSWER_BYTES).certificate
    check_renewed(made, key.public, present, certificates.read(folder / AUTHORITY))
    kept = (AUTHORITY, CONTROL, RELEASE, ROOT, FACTS, HTTPS)
    content = {name: (folder / name).read_bytes() for name in kept if (folder / name).exists()}
    content |= {KEY: key.pem(), CERTIFICATE: made.encode()}
    files.switch(folder, content, check=Identity.read)
    files.drop_pending(folder)


def check_renewed(
    text: str, key: PublicKey, present: x509.Certificate, authority: x509.Certificate
) -> None:
    """Refuse a certificate, from anybody, that is not what was asked for.

    Raises:
        MessageError: it is none.
        UntrustedError: it is for another key or subject, of another authority, or no longer valid
            than the present one.
    """
    made = certificates.decode(text)
    if made is None:
        raise MessageError("the coordinator answered with something else than a certificate")
    held = certificates.key_of(made)
    if held is None or held.id != key.id or made.subject != present.subject:
        raise UntrustedError("the coordinator answered with somebody else's certificate")
    if not certificates.is_issued_by(made, authority):
        raise UntrustedError("the coordinator answered with another authority's certificate")
    if made.not_valid_after_utc <= present.not_valid_after_utc:
        raise UntrustedError("the coordinator answered with a certificate that ends no later")
