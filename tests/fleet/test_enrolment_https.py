"""Enrolment over https: a real TLS server with a certificate of somebody's own authority."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import certificates, storage
from edgekit.clock import SystemClock
from edgekit.errors import ConfigError, LinkError, UntrustedError
from edgekit.fleet import authority
from edgekit.fleet.authority import Authority
from edgekit.signing import SigningKey
from edgekit_runtime.identity import Identity
from edgekit_runtime.identity.enrol import enroll
from edgekit_runtime.identity.renewal import renew
from tests.fleet.enrolling import Enrolling, enrolling

DAY_S = 86_400.0


def authority_in(folder: Path, *, host: str = "127.0.0.1") -> tuple[Path, tuple[Path, Path]]:
    """A new authority's certificate, and the certificate and key of a server at `host`."""
    now_ms = SystemClock().now_ms()
    issuer, _ = Authority.make(name=folder.name, now_ms=now_ms)
    key = SigningKey.generate()
    ca, certificate, private = (folder / name for name in ("ca.pem", "web.crt", "web.key"))
    authority.write_certificate(ca, issuer.certificate)
    made = issuer.issue_broker(key, hosts=[host], now_ms=now_ms)
    authority.write_certificate(certificate, made)
    storage.write(private, key.pem(), mode=0o600)
    return ca, (certificate, private)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the authority `ca.pem` and what it issued for the office's server."""
    folder = tmp_path_factory.mktemp("company")
    authority_in(folder)
    return folder


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, company: Path) -> Iterator[Enrolling]:
    fleet = tmp_path_factory.mktemp("office") / "fleet"
    with enrolling(fleet, tls=(company / "web.crt", company / "web.key")) as made:
        yield made


def get_in(office: Enrolling, device: str, folder: Path, *, ca: Path | None) -> Identity:
    token = office.token(device)
    return enroll(folder, token, coordinator=office.url, name=None, clock=office.clock, ca=ca)


def test_a_device_enrols_and_renews_by_the_authority_that_it_was_given(
    office: Enrolling, company: Path, tmp_path: Path
) -> None:
    identity = get_in(office, "cam", tmp_path / "identity", ca=company / "ca.pem")
    office.clock.advance(50 * DAY_S)

    renew(identity, clock=office.clock)

    after = Identity.read(tmp_path / "identity")
    assert after.expires_at_ms > identity.expires_at_ms
    kept = after.https_ca.read_bytes()
    fleets = certificates.read(office.folder.ca_certificate)
    assert authority.pem(fleets) in kept
    assert (company / "ca.pem").read_bytes() in kept
    # At the broker nobody but the fleet's own authority counts.
    assert after.tls.ca.read_bytes() == office.folder.trust_ca.read_bytes()


def test_without_the_authority_nothing_is_asked_and_the_token_stays_unused(
    office: Enrolling, company: Path, tmp_path: Path
) -> None:
    token = office.token("later")
    office.wire.heard.clear()
    stranger, _ = authority_in(tmp_path / "stranger")

    for ca in (None, stranger):
        with pytest.raises(UntrustedError, match="is not trusted here") as refused:
            enroll(
                tmp_path / "identity",
                token,
                coordinator=office.url,
                name=None,
                clock=office.clock,
                ca=ca,
            )
        assert "--ca FILE" in str(refused.value.hint)

    assert office.wire.heard == []
    assert not (tmp_path / "identity").exists()
    identity = enroll(
        tmp_path / "identity",
        token,
        coordinator=office.url,
        name=None,
        clock=office.clock,
        ca=company / "ca.pem",
    )
    assert identity.device == "later"


def test_a_certificate_for_another_host_is_not_believed(tmp_path: Path) -> None:
    ca, pair = authority_in(tmp_path / "other", host="fleet.example.com")
    with (
        enrolling(tmp_path / "fleet", tls=pair) as office,
        pytest.raises(UntrustedError, match="mismatch"),
    ):
        get_in(office, "cam", tmp_path / "identity", ca=ca)


def test_an_authority_that_the_system_trusts_need_not_be_given(
    office: Enrolling, company: Path, tmp_path: Path
) -> None:
    """`SSL_CERT_FILE` is where OpenSSL looks for the system's authorities."""
    trusting = {**os.environ, "SSL_CERT_FILE": str(company / "ca.pem")}

    done = _enroll(office, "trusting", tmp_path, env=trusting)

    assert done.returncode == 0, done.stderr
    assert Identity.read(tmp_path / "state" / "identity").device == "trusting"


def test_the_command_takes_the_authoritys_file(
    office: Enrolling, company: Path, tmp_path: Path
) -> None:
    stranger, _ = authority_in(tmp_path / "stranger")

    without = _enroll(office, "first", tmp_path)
    wrong = _enroll(office, "second", tmp_path, "--ca", str(stranger))
    missing = _enroll(office, "third", tmp_path, "--ca", str(tmp_path / "nowhere.pem"))
    right = _enroll(office, "fourth", tmp_path, "--ca", str(company / "ca.pem"))

    for refused in (without, wrong):
        assert refused.returncode == UntrustedError.exit_code
        assert f"the certificate of {office.url} is not trusted here" in refused.stderr
        assert "hint: --ca FILE" in refused.stderr
    assert missing.returncode == 2
    assert right.returncode == 0, right.stderr
    assert Identity.read(tmp_path / "state" / "identity").device == "fourth"


def test_a_file_without_certificates_is_told_before_anything_is_asked(
    office: Enrolling, tmp_path: Path
) -> None:
    office.wire.heard.clear()
    (tmp_path / "ca.pem").write_text("nothing of the kind\n")

    with pytest.raises(ConfigError, match="not a file of certificates"):
        get_in(office, "cam", tmp_path / "identity", ca=tmp_path / "ca.pem")

    assert office.wire.heard == []


def test_http_at_a_port_that_speaks_https_and_the_other_way_round_is_a_link_error(
    office: Enrolling, company: Path, tmp_path: Path
) -> None:
    token = office.token("mixed")
    with enrolling(tmp_path / "fleet") as plain:
        for url in (office.url.replace("https", "http"), plain.url.replace("http", "https")):
            with pytest.raises(LinkError):
                enroll(
                    tmp_path / "identity",
                    token,
                    coordinator=url,
                    name=None,
                    clock=office.clock,
                    ca=company / "ca.pem",
                )


def _enroll(
    office: Enrolling, device: str, folder: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    file = folder / f"{device}.token"
    file.write_text(office.token(device).text)
    return subprocess.run(
        [
            *(sys.executable, "-m", "edgekit", "device", "enroll", "--token-file", str(file)),
            *("--coordinator", office.url, "--state", str(folder / "state"), *options),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
    )
