"""Authority: a fleet's own issuer of certificates (X.509, P-256) and the names in them.

A device's certificate says who it is: `CN=DEVICE,OU=GENERATION,O=SITE`. Site and device may have
63 characters each and a common name 64, so they do not fit in one field. The generation counts how
often a name was enrolled: brokers know the latest alone, so that an old certificate of a device
that was revoked and enrolled anew has no rights, where a broker reads no revocation list too.
What a certificate may be used for is in it (client or server), so no device can pose as a broker.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit import certificates, storage
from edgekit.errors import ConfigError, FleetError
from edgekit.signing import SigningKey
from edgekit.structs import Strict

AUTHORITY_DAYS = 20 * 365
SERVICE_DAYS = 365
COORDINATOR = "CN=coordinator"
_BROKER = "broker"
# A board's clock may be behind by so much and still take its new certificate for valid.
BACKDATED = dt.timedelta(hours=1)


class Subject(NamedTuple):
    """Whom a device's certificate names."""

    site: str
    device: str
    generation: int

    @property
    def name(self) -> str:
        """`SITE/DEVICE`."""
        return f"{self.site}/{self.device}"

    @property
    def user(self) -> str:
        """What both brokers call the bearer: the subject as RFC 2253 writes it."""
        return f"CN={self.device},OU={self.generation},O={self.site}"

    def to_x509(self) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.site),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, str(self.generation)),
                x509.NameAttribute(NameOID.COMMON_NAME, self.device),
            ]
        )


class Revoked(Strict, frozen=True):
    """One line of a revocation list; `at_ms` is milliseconds since 1970 UTC."""

    serial: int
    at_ms: int


class Authority:
    """Issues certificates.

    Args:
        key: the authority's own.
        certificate: its own.
    """

    def __init__(self, key: SigningKey, certificate: x509.Certificate) -> None:
        self._key = _crypto(key)
        self.certificate = certificate

    @classmethod
    def make(cls, *, name: str, now_ms: int) -> tuple[Authority, SigningKey]:
        """A new authority for the fleet `name`, and its key."""
        key = SigningKey.generate()
        subject = _common_name(f"{name[:40]} fleet authority")
        now = _moment(now_ms)
        certificate = (
            _builder(subject, subject, public_of(key), now, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(issues=True), critical=True)
            .sign(_crypto(key), hashes.SHA256())
        )
        return cls(key, certificate), key

    @classmethod
    def read(cls, key: Path, certificate: Path) -> Authority:
        """Read both files, raising `ConfigError` where they are missing or not a pair."""
        private, public = SigningKey.read(key), certificates.read(certificate)
        if public.public_key() != _crypto(private).public_key():
            raise ConfigError(f"{certificate} is not the certificate of {key}")
        return cls(private, public)

    def issue_device(
        self, subject: Subject, key: ec.EllipticCurvePublicKey, *, days: int, now_ms: int
    ) -> x509.Certificate:
        """A client's certificate for a device."""
        return self._issue(subject.to_x509(), key, [ExtendedKeyUsageOID.CLIENT_AUTH], days, now_ms)

    def issue_coordinator(self, key: SigningKey, *, now_ms: int) -> x509.Certificate:
        """The coordinator's certificate as a client of the broker."""
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        public = public_of(key)
        return self._issue(_common_name("coordinator"), public, usage, SERVICE_DAYS, now_ms)

    def issue_broker(
        self, key: SigningKey, *, hosts: Sequence[str], now_ms: int
    ) -> x509.Certificate:
        """The broker's certificate, good for the names and addresses `hosts`."""
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        public = public_of(key)
        return self._issue(_common_name(_BROKER), public, usage, SERVICE_DAYS, now_ms, hosts=hosts)

    def revocations(self, revoked: Iterable[Revoked], *, now_ms: int) -> bytes:
        """The revocation list in PEM.

        It does not expire before the authority does: who reads it has the file at hand, and a
        broker that finds it expired would refuse every device.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(_moment(now_ms) - BACKDATED)
            .next_update(self.certificate.not_valid_after_utc)
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.serial)
            builder = builder.add_revoked_certificate(
                entry.revocation_date(_moment(one.at_ms)).build()
            )
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        usage: list[x509.ObjectIdentifier],
        days: int,
        now_ms: int,
        *,
        hosts: Sequence[str] = (),
    ) -> x509.Certificate:
        own = self._key.public_key()
        builder = (
            _builder(subject, self.certificate.subject, key, _moment(now_ms), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(issues=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def subject_of(certificate: x509.Certificate) -> Subject:
    """Whom a device's certificate names, raising `FleetError` for one that is not a device's."""
    found = {attribute.oid: str(attribute.value) for attribute in certificate.subject}
    try:
        subject = Subject(
            found[NameOID.ORGANIZATION_NAME],
            found[NameOID.COMMON_NAME],
            int(found[NameOID.ORGANIZATIONAL_UNIT_NAME]),
        )
    except (LookupError, ValueError) as e:
        raise FleetError("the certificate is not a device's") from e
    if subject.to_x509() != certificate.subject:
        raise FleetError("the certificate is not a device's")
    return subject


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Names and addresses that a broker's certificate is good for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    storage.write(path, pem(certificate))


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def public_of(key: SigningKey) -> ec.EllipticCurvePublicKey:
    """The public half, as certificates want it."""
    return _crypto(key).public_key()


def _crypto(key: SigningKey) -> ec.EllipticCurvePrivateKey:
    """The key as `cryptography` wants it for certificates."""
    made = serialization.load_pem_private_key(key.pem(), password=None)
    assert isinstance(made, ec.EllipticCurvePrivateKey)
    return made


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        key_cert_sign=issues,
        crl_sign=issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _moment(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms // 1000, dt.timezone.utc)
