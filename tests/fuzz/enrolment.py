"""Targets: what devices and coordinators say over certificates, as anybody may send it."""

from __future__ import annotations

import datetime as dt
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit import enrolment, envelope
from edgekit.enrolment import (
    Answer,
    Ask,
    DeviceFacts,
    RenewalAsk,
    RenewalRequest,
    Sealed,
    Token,
)
from edgekit.errors import EdgekitError, MessageError
from edgekit.signing import SigningKey
from edgekit.structs import Strict
from edgekit_runtime.identity.enrol import opened
from edgekit_runtime.identity.renewal import check_renewed
from tests.fuzz.target import Target, attempt

S = TypeVar("S", bound=Strict)

TOKEN = Token("00" * 8, bytes(32))
BODY = b"{}"
START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


def request(raw: bytes) -> None:
    """A request is one, or an error says what is wrong; only a sealed one is read further."""
    sealed = attempt(lambda: enrolment.decode(raw, Sealed), MessageError)
    if isinstance(sealed, Sealed):
        attempt(lambda: enrolment.asked(sealed, TOKEN), EdgekitError)


def ask(raw: bytes) -> None:
    """What a token's holder sends: a key comes out, or an error."""
    found = attempt(lambda: enrolment.decode(raw, Ask), MessageError)
    if isinstance(found, Ask):
        key = attempt(lambda: enrolment.requested_key(found.csr), MessageError)
        assert isinstance(key, MessageError) or len(key.id) == 64


def answer(raw: bytes) -> None:
    """What the wire gives back: never believed but for the question and by the secret."""
    found = attempt(lambda: opened(raw, TOKEN, BODY), EdgekitError)
    if isinstance(found, Answer):
        assert found.request == enrolment.sha256(BODY)


def renewal(raw: bytes) -> None:
    """A renewal's request and its envelope."""
    found = attempt(
        lambda: enrolment.decode(raw, RenewalRequest, limit_bytes=1 << 16), MessageError
    )
    if isinstance(found, RenewalRequest):
        body = attempt(
            lambda: envelope.open_(
                found.envelope, kind=enrolment.RENEWAL, trusted=[KEY.public], what="renewal"
            ),
            EdgekitError,
        )
        if isinstance(body, bytes):
            attempt(lambda: enrolment.decode(body, RenewalAsk), MessageError)


def renewed(raw: bytes) -> None:
    """A certificate from anybody is refused, unless it is the very one that was asked for."""
    text = raw.decode("utf-8", "replace")
    found = attempt(lambda: check_renewed(text, KEY.public, PRESENT, AUTHORITY), EdgekitError)
    if found is None:
        assert x509.load_pem_x509_certificate(text.encode()) == NEXT


def _issue(subject: str, key: SigningKey, *, days: int) -> x509.Certificate:
    public = serialization.load_pem_public_key(key.public.pem)
    private = serialization.load_pem_private_key(AUTHORITY_KEY.pem(), password=None)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
        .public_key(public)
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + dt.timedelta(days=days))
        .sign(private, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


KEY, AUTHORITY_KEY = SigningKey.generate(), SigningKey.generate()
AUTHORITY = _issue("authority", AUTHORITY_KEY, days=99)
PRESENT, NEXT = _issue("cam", KEY, days=1), _issue("cam", KEY, days=2)
CSR = enrolment.request_for(KEY)
ANSWER = Answer(
    request=enrolment.sha256(BODY),
    certificate=_pem(NEXT),
    ca=_pem(AUTHORITY),
    control=KEY.public.pem.decode(),
    release=KEY.public.pem.decode(),
    root="{}",
    facts=DeviceFacts(
        site="berlin", device="cam", broker="mqtts://a:1", repositories=("http://a/",),
        coordinator="http://a",
    ),
)  # fmt: skip
RENEWAL = RenewalRequest(
    certificate=_pem(PRESENT),
    envelope=envelope.sign(
        msgspec.json.encode(RenewalAsk(csr=CSR)), kind=enrolment.RENEWAL, key=KEY
    ),
)

WORDS = [b'"token":', b'"body":', b'"mac":', b'"v":1', b'"csr":', b"-----BEGIN CERTIFICATE-----",
         b"-----END CERTIFICATE-----", b"\\n", b'"name":null', b"berlin/cam", b"MII"]  # fmt: skip

_ask = msgspec.json.encode(Ask(csr=CSR, name="berlin/cam"))
TARGETS = {
    "enrolment request": Target(
        request, [msgspec.json.encode(enrolment.ask(TOKEN, _ask)), b"{}"], WORDS
    ),
    "enrolment ask": Target(ask, [_ask, msgspec.json.encode(Ask(csr=CSR))], WORDS),
    "enrolment answer": Target(
        answer,
        [msgspec.json.encode(enrolment.answer(TOKEN, msgspec.json.encode(ANSWER)))],
        WORDS,
    ),
    "renewal request": Target(renewal, [msgspec.json.encode(RENEWAL)], WORDS),
    "renewed certificate": Target(
        renewed,
        [
            _pem(NEXT).encode(),
            _pem(PRESENT).encode(),
            b"-----BEGIN CERTIFICATE-----",
        ],
        WORDS,
    ),
}
