"""Identity: a device's key, its certificate and all that it trusts, as read from its folder.

Files: `device.key` (0600), `device.crt`, `ca.crt`, `root.json`, `control.pub`, `release.pub`,
`https.crt`, `fleet.json` (`edgekit.enrolment.DeviceFacts`). What is given by `read` fits together:
the key is the certificate's, the authority issued it, and it names the device of `fleet.json`.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from edgekit import certificates, enrolment, signed_frame
from edgekit.enrolment import DeviceFacts
from edgekit.errors import ConfigError, MessageError
from edgekit.link import Tls
from edgekit.signing import PublicKey, SigningKey
from edgekit_runtime.identity.validity import Validity

KEY, CERTIFICATE, AUTHORITY = "device.key", "device.crt", "ca.crt"
ROOT, CONTROL, RELEASE, FACTS = "root.json", "control.pub", "release.pub", "fleet.json"
HTTPS = "https.crt"

_HINT = "edgekit device enroll --token-file FILE --coordinator URL"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A device as its fleet knows it. Paths go through `folder` and outlive a renewal.

    Attributes:
        broker: `mqtts://HOST:PORT`.
        repositories: base URLs of the signed repository and its mirrors.
        coordinator: URL where the certificate is renewed.
        tls: with what it connects to the broker.
        control_keys: whose desired states and commands it obeys.
        release_keys: whose bundles it runs.
        root: the `root.json` of its first trust.
        starts_at_ms: begin of its certificate's validity, milliseconds since 1970 UTC.
        expires_at_ms: the end of it.
        client_id: for the broker; a secret, see `edgekit.enrolment.client_id`.
    """

    folder: Path
    site: str
    device: str
    broker: str
    repositories: tuple[str, ...]
    coordinator: str
    tls: Tls
    control_keys: list[PublicKey]
    release_keys: list[PublicKey]
    root: Path
    starts_at_ms: int
    expires_at_ms: int
    client_id: str

    @property
    def name(self) -> str:
        """`SITE/DEVICE`."""
        return f"{self.site}/{self.device}"

    @property
    def https_ca(self) -> Path:
        """Authorities of coordinator and repository over https, beside the system's.

        The fleet's own is among them. An identity of an earlier release has no file of its own.
        """
        own = self.folder / HTTPS
        return own if own.exists() else self.tls.ca

    @property
    def validity(self) -> Validity:
        return Validity(self.starts_at_ms, self.expires_at_ms)

    def sign(self, payload: bytes, *, kind: str) -> bytes:
        """`payload` in a frame that this device signed, with the key that it has now."""
        return signed_frame.sign(payload, kind=kind, key=SigningKey.read(self.tls.key))

    @classmethod
    def read(cls, folder: Path) -> Identity:
        """The identity in a folder.

        Raises:
            ConfigError: there is none, or its files do not fit together.
        """
        facts = _facts(folder / FACTS)
        key = SigningKey.read(folder / KEY)
        certificate = certificates.read(folder / CERTIFICATE, hint=_HINT)
        authority = certificates.read(folder / AUTHORITY, hint=_HINT)
        _check(certificate, key, authority, facts, folder)
        if not (folder / ROOT).is_file():
            raise ConfigError(f"{folder / ROOT} is missing", hint=_HINT)
        return cls(
            folder=folder,
            site=facts.site,
            device=facts.device,
            broker=facts.broker,
            repositories=facts.repositories,
            coordinator=facts.coordinator,
            tls=Tls(folder / AUTHORITY, folder / CERTIFICATE, folder / KEY),
            control_keys=[PublicKey.read(folder / CONTROL)],
            release_keys=[PublicKey.read(folder / RELEASE)],
            root=folder / ROOT,
            starts_at_ms=_milliseconds(certificate.not_valid_before_utc.timestamp()),
            expires_at_ms=_milliseconds(certificate.not_valid_after_utc.timestamp()),
            client_id=enrolment.client_id(f"{facts.site}-{facts.device}", key),
        )


def named(certificate: x509.Certificate) -> tuple[str, str]:
    """Site and device that a certificate names; "" for what is missing."""
    found = {attribute.oid: str(attribute.value) for attribute in certificate.subject}
    return found.get(NameOID.ORGANIZATION_NAME, ""), found.get(NameOID.COMMON_NAME, "")


def _facts(path: Path) -> DeviceFacts:
    try:
        with path.open("rb") as file:
            raw = file.read(enrolment.MAX_ANSWER_BYTES)
    except PermissionError as e:
        user = os.geteuid()
        raise ConfigError(
            f"{path} cannot be read by user {user}, as whom this runs: {e.strerror}",
            hint=f"if the daemon runs as {user}: chown -R {user} {path.parent.resolve()}",
        ) from e
    except OSError as e:
        raise ConfigError(
            f"{path.parent} holds no identity: {path.name}: {e.strerror}", hint=_HINT
        ) from e
    try:
        return enrolment.decode(raw, DeviceFacts)
    except MessageError as e:
        raise ConfigError(f"{path}: {e.message}", hint=_HINT) from e


def _check(
    certificate: x509.Certificate,
    key: SigningKey,
    authority: x509.Certificate,
    facts: DeviceFacts,
    folder: Path,
) -> None:
    held = certificates.key_of(certificate)
    if held is None or held.id != key.public.id:
        raise ConfigError(f"{folder}: {KEY} is not the key of {CERTIFICATE}", hint=_HINT)
    if not certificates.is_issued_by(certificate, authority):
        raise ConfigError(f"{folder}: {AUTHORITY} did not issue {CERTIFICATE}", hint=_HINT)
    if named(certificate) != (facts.site, facts.device):
        raise ConfigError(f"{folder}: {CERTIFICATE} names another device", hint=_HINT)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
