"""What the fleet's authority puts into certificates, and what it does not."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from edgekit import certificates, storage
from edgekit.errors import ConfigError, FleetError
from edgekit.fleet import authority
from edgekit.fleet.authority import Authority, Revoked, Subject
from edgekit.signing import SigningKey

NOW_MS = 1_780_000_000_000
IDS = st.from_regex(r"\A[a-z0-9-]{1,63}\Z")
CAM = Subject("berlin", "cam", 1)
ISSUER, _ = Authority.make(name="test", now_ms=NOW_MS)


def device(subject: Subject = CAM) -> x509.Certificate:
    key = authority.public_of(SigningKey.generate())
    return ISSUER.issue_device(subject, key, days=90, now_ms=NOW_MS)


@given(site=IDS, device_id=IDS, generation=st.integers(1, 10**6))
def test_a_certificate_names_site_device_and_generation_however_long(
    site: str, device_id: str, generation: int
) -> None:
    subject = Subject(site, device_id, generation)

    issued = device(subject)

    assert authority.subject_of(issued) == subject
    assert issued.subject.rfc4514_string() == subject.user


def test_a_devices_certificate_is_a_clients_and_the_brokers_a_servers() -> None:
    broker = ISSUER.issue_broker(
        SigningKey.generate(), hosts=["mqtt.example.com", "10.0.0.1"], now_ms=NOW_MS
    )
    at = dt.datetime.fromtimestamp(NOW_MS / 1000, dt.timezone.utc)
    policy = PolicyBuilder().store(Store([ISSUER.certificate])).time(at)
    server = policy.build_server_verifier(x509.DNSName("mqtt.example.com"))

    assert server.verify(broker, [])
    with pytest.raises(VerificationError):
        server.verify(device(), [])
    usage = device().extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert authority.hosts_of(broker) == ("mqtt.example.com", "10.0.0.1")


def test_only_what_this_authority_signed_is_its_own() -> None:
    other, _ = Authority.make(name="test", now_ms=NOW_MS)

    assert certificates.is_issued_by(device(), ISSUER.certificate)
    assert not certificates.is_issued_by(device(), other.certificate)


def test_the_coordinator_is_no_device() -> None:
    made = ISSUER.issue_coordinator(SigningKey.generate(), now_ms=NOW_MS)

    assert made.subject.rfc4514_string() == authority.COORDINATOR
    with pytest.raises(FleetError, match="not a device's"):
        authority.subject_of(made)


def test_the_revocation_list_names_what_is_revoked_and_does_not_expire_by_itself() -> None:
    issued = device()

    raw = ISSUER.revocations([Revoked(issued.serial_number, NOW_MS)], now_ms=NOW_MS)

    read = x509.load_pem_x509_crl(raw)
    assert read.get_revoked_certificate_by_serial_number(issued.serial_number) is not None
    assert read.get_revoked_certificate_by_serial_number(device().serial_number) is None
    assert read.is_signature_valid(ISSUER.certificate.public_key())  # type: ignore[arg-type]
    assert read.next_update_utc == ISSUER.certificate.not_valid_after_utc


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    storage.write(tmp_path / "ca.key", SigningKey.generate().pem(), mode=0o600)
    authority.write_certificate(tmp_path / "ca.crt", ISSUER.certificate)

    with pytest.raises(ConfigError, match="is not the certificate of"):
        Authority.read(tmp_path / "ca.key", tmp_path / "ca.crt")
