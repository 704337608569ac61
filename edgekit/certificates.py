"""Certificates as both sides read them. What comes from anybody ends in an answer or one error."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.errors import ConfigError
from edgekit.signing import PublicKey

# What the parser raises for what it does not know; much of a certificate it reads on use only.
FOREIGN = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


def decode(text: str) -> x509.Certificate | None:
    """The certificate in a PEM text, or `None` where there is none that can be read."""
    try:
        return _load(text.encode())
    except FOREIGN:
        return None


def read(path: Path, *, hint: str | None = None) -> x509.Certificate:
    """A certificate in PEM, raising `ConfigError` where there is none."""
    try:
        return _load(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"certificate {path} cannot be read: {e.strerror}", hint=hint) from e
    except FOREIGN as e:
        raise ConfigError(f"{path} is not a certificate in PEM", hint=hint) from e


def _load(raw: bytes) -> x509.Certificate:
    """A certificate whose names and times are sure to be readable."""
    found = x509.load_pem_x509_certificate(raw)
    _ = (found.subject, found.issuer, found.not_valid_before_utc, found.not_valid_after_utc)
    return found


def key_of(certificate: x509.Certificate) -> PublicKey | None:
    """The certificate's key, or `None` where it is not a sound P-256 key."""
    try:
        key = certificate.public_key()
    except FOREIGN:
        return None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return PublicKey(key)
    return None


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether `authority` signed `certificate`; says nothing of its time or revocation."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, *FOREIGN):
        return False
    return True
