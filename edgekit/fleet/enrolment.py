"""Enrolment office: gives certificates for a token, or for the certificate a device has.

A token lets one key in, once. Asking again for the same key gives the same certificate, so an
answer that was lost on its way can be asked for until the token expires; any other key is refused.
A renewal is asked with the present certificate's key, and refused once that expired, was revoked,
or belongs to an older enrolment, before half of its lifetime has gone, and while the device holds
as many valid certificates as it may. All is on record before it is answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit import certificates, enrolment, envelope
from edgekit.clock import Clock
from edgekit.enrolment import Answer, Ask, DeviceFacts, RenewalAsk, RenewalRequest, Renewed, Sealed
from edgekit.errors import ConfigError, FleetError, MessageError, UntrustedError
from edgekit.fleet import authority
from edgekit.fleet.authority import Authority, Subject
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.members import Change, Held, Issued, Members
from edgekit.signing import PublicKey

log = logging.getLogger(__name__)

_HINT = "edgekit fleet token DIR SITE/DEVICE makes a new one"
# One in use, one that waits, and two whose keys were lost with a device's disk.
MOST_VALID = 4


class Office:
    """Answers requests. Methods block, and may be called from any thread.

    Args:
        folder: of the fleet; `facts`, authority and `trust/` are read once.
        members: who belongs to it.
        clock: for validity.
        changed: called after another device, or generation of one, was let in.

    Raises:
        FleetError, ConfigError: the folder is not a whole fleet.
    """

    def __init__(
        self, folder: FleetFolder, members: Members, *, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self._facts = folder.facts()
        self._authority = Authority.read(folder.ca_key, folder.ca_certificate)
        self._folder = folder
        self._ca = _text(folder.trust_ca)
        self._control = _text(folder.trust_control)
        self._members = members
        self._clock = clock
        self._changed = changed

    def enroll(self, raw: bytes) -> bytes:
        """Answer a `Sealed` request with a `Sealed` answer, both in JSON.

        Raises:
            MessageError: the request is not one.
            UntrustedError: the token is unknown or expired, or its secret did not seal this.
            FleetError: the token was used for another key, or made for another device.
        """
        sealed = enrolment.decode(raw, Sealed)
        now_ms = self._clock.now_ms()
        with self._members.change() as change:
            held = change.token(sealed.token)
            if held is None:
                raise UntrustedError("this token is not known here", hint=_HINT)
            body = enrolment.asked(sealed, held.token)
            if now_ms > held.expires_ms:
                raise UntrustedError("this token has expired", hint=_HINT)
            certificate, is_new = self._admit(
                change, held, enrolment.decode(body, Ask), now_ms=now_ms
            )
        if is_new:
            log.info("device enrolled", extra={"device": f"{held.site}/{held.device}"})
            self._changed()
        answer = Answer(
            request=enrolment.sha256(body),
            certificate=certificate.decode(),
            ca=self._ca,
            control=self._control,
            # Read each time: who enrols after an exchange of keys is to trust the new ones alone.
            release=_text(self._folder.trust_release),
            root=_text(self._folder.trust_root),
            facts=self._device_facts(held.site, held.device),
        )
        return msgspec.json.encode(enrolment.answer(held.token, msgspec.json.encode(answer)))

    def renew(self, raw: bytes) -> bytes:
        """Answer a `RenewalRequest` with `Renewed`, both in JSON.

        Raises:
            MessageError: the request is not one.
            UntrustedError: the present certificate is not this fleet's, or has no rights any more.
            FleetError: another key than the one that waits asks too early, or too often.
        """
        request = enrolment.decode(raw, RenewalRequest, limit_bytes=2 * enrolment.MAX_REQUEST_BYTES)
        present = self._present(request.certificate)
        holder = certificates.key_of(present)
        if holder is None:
            raise MessageError("the certificate's key is not P-256")
        payload = envelope.open_(
            request.envelope,
            kind=enrolment.RENEWAL,
            trusted=[holder],
            what="renewal",
        )
        key = enrolment.requested_key(enrolment.decode(payload, RenewalAsk).csr)
        subject = authority.subject_of(present)
        now_ms = self._clock.now_ms()
        with self._members.change() as change:
            if not change.is_current(subject):
                raise UntrustedError(
                    f"{subject.name} was revoked, or enrolled anew since", hint=_HINT
                )
            made = change.certificate_for(subject, key=key.id, now_ms=now_ms)
            if made is None:
                held = change.certificates(subject.site, subject.device, now_ms=now_ms)
                _require_due(present, held=len(held), now_ms=now_ms)
                made = self._issue(change, subject, key)
        log.info("certificate renewed", extra={"device": subject.name})
        return msgspec.json.encode(Renewed(certificate=made.decode()))

    def _admit(self, change: Change, held: Held, asked: Ask, *, now_ms: int) -> tuple[bytes, bool]:
        """The certificate for a token's device, and whether it was made now."""
        name = f"{held.site}/{held.device}"
        if asked.name not in (None, name):
            raise FleetError(
                f"this token is for {name}, and {asked.name} asks", hint="[device] has site and id"
            )
        key = enrolment.requested_key(asked.csr)
        if held.key is None or held.certificate is None:
            subject = change.enrol(held.site, held.device, now_ms=now_ms)
            made = self._issue(change, subject, key)
            change.use_token(held.token, key=key.id, certificate=made)
            return made, True
        if held.key != key.id:
            raise FleetError(f"this token of {name} was used already", hint=_HINT)
        return held.certificate, False

    def _issue(self, change: Change, subject: Subject, key: PublicKey) -> bytes:
        now_ms = self._clock.now_ms()
        days = self._facts.certificate_days
        public = serialization.load_pem_public_key(key.pem)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        made = self._authority.issue_device(subject, public, days=days, now_ms=now_ms)
        pem = authority.pem(made)
        expires_ms = round(made.not_valid_after_utc.timestamp() * 1000)
        change.forget_certificates(now_ms=now_ms)
        change.add_certificate(subject, Issued(made.serial_number, key.id, pem, now_ms, expires_ms))
        return pem

    def _present(self, text: str) -> x509.Certificate:
        present = certificates.decode(text)
        if present is None:
            raise MessageError("certificate is not one in PEM")
        if not certificates.is_issued_by(present, self._authority.certificate):
            raise UntrustedError("this fleet did not issue the certificate", hint=_HINT)
        if self._clock.now_ms() > present.not_valid_after_utc.timestamp() * 1000:
            raise UntrustedError("the certificate has expired", hint=_HINT)
        return present

    def _device_facts(self, site: str, device: str) -> DeviceFacts:
        return DeviceFacts(
            site=site,
            device=device,
            broker=self._facts.broker,
            repositories=self._facts.repositories,
            coordinator=self._facts.coordinator,
        )


def _require_due(present: x509.Certificate, *, held: int, now_ms: int) -> None:
    """Refuse a renewal that no device needs yet; `held` counts its valid certificates."""
    start, end = present.not_valid_before_utc, present.not_valid_after_utc
    half = start + (end - start) / 2
    if now_ms < half.timestamp() * 1000:
        raise FleetError(
            f"the certificate is good until {end:%Y-%m-%d}: it is too early to renew it",
            hint=f"it can be renewed from {half:%Y-%m-%d %H:%M} UTC on",
        )
    if held >= MOST_VALID:
        raise FleetError(
            f"the device holds {held} certificates that are valid, and may have no more",
            hint=f"one can be made when one of them has expired; {_HINT}",
        )


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from e
