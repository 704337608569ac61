"""Enrolment: what a device and a coordinator say to each other over a certificate.

First contact has no certificate to lean on, only a token that the operator carried over: an id and
a secret. The secret never travels. Two keys are derived from it (HKDF-SHA256, RFC 5869), one for
what the device asks and one for what it is answered, and each message carries an HMAC-SHA256 over
its exact bytes. Promise: who sits between the two can read nothing that is secret and change
nothing; he can only keep messages from arriving. Renewals are signed by the present key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgekit.certificates import FOREIGN
from edgekit.errors import MessageError, UntrustedError, UsageError
from edgekit.manifest import Sha256
from edgekit.messages import Id
from edgekit.signing import PublicKey, SigningKey
from edgekit.structs import Strict

MAX_REQUEST_BYTES = 16 << 10
MAX_ANSWER_BYTES = 256 << 10
MAX_TOKEN_BYTES = 1024
RENEWAL = "application/vnd.edgekit.renewal+json"
ENROLL_PATH = "/api/enroll"
RENEW_PATH = "/api/renew"

_SECRET_BYTES = 32
_TOKEN = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{64})")
_ASK, _ANSWER = b"edgekit enrolment ask v1", b"edgekit enrolment answer v1"

Pem = Annotated[str, msgspec.Meta(min_length=1, max_length=64 << 10)]
TokenId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,63}/[a-z0-9-]{1,63}\Z")]

S = TypeVar("S", bound=Strict)


class Token(NamedTuple):
    """What lets one device enrol once. `text` is `ID.SECRET` in hex, a secret."""

    id: str
    secret: bytes

    @classmethod
    def new(cls) -> Token:
        return cls(secrets.token_hex(8), secrets.token_bytes(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token, raising `UsageError` (which does not repeat it) for anything else."""
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                "this is not an enrolment token", hint="edgekit fleet token DIR SITE/DEVICE"
            )
        return cls(match[1], bytes.fromhex(match[2]))

    @property
    def text(self) -> str:
        return f"{self.id}.{self.secret.hex()}"

    def __repr__(self) -> str:
        return f"Token({self.id})"


class Sealed(Strict, frozen=True, kw_only=True):
    """A message between the two who know a token's secret.

    Attributes:
        body: JSON of an `Ask` or an `Answer`, base64 on the wire.
        mac: HMAC-SHA256 over `body`, with the key of its direction.
    """

    token: TokenId
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_ANSWER_BYTES)]
    mac: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Ask(Strict, frozen=True, kw_only=True):
    """What a device wants.

    Attributes:
        csr: PKCS #10 request in PEM for a P-256 key; only its key and proof of possession count.
        name: who the device thinks it is; refused, with the token unused, where it was made for
            another. `None` takes the token's word.
    """

    v: Literal[1] = 1
    csr: Pem
    name: Name | None = None


class DeviceFacts(Strict, frozen=True, kw_only=True):
    """`fleet.json` of a device: who it is and where its fleet is; see `fleet.folder.Facts`."""

    format: Literal[1] = 1
    site: Id
    device: Id
    broker: str
    repositories: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    coordinator: str


class Answer(Strict, frozen=True, kw_only=True):
    """A certificate, and all that a device trusts from then on; all but the facts are PEM or TUF.

    Attributes:
        request: sha256 of the body that is answered.
        root: the fleet's first `root.json`; from it the device follows every later one.
    """

    v: Literal[1] = 1
    request: Sha256
    certificate: Pem
    ca: Pem
    control: Pem
    release: Pem
    root: Annotated[str, msgspec.Meta(max_length=128 << 10)]
    facts: DeviceFacts


class RenewalRequest(Strict, frozen=True, kw_only=True):
    """A device asks for a new certificate.

    Attributes:
        certificate: its present one, whose key signed the envelope.
        envelope: `edgekit.envelope` of kind `RENEWAL` around a `RenewalAsk`; base64 on the wire.
    """

    certificate: Pem
    envelope: Annotated[bytes, msgspec.Meta(max_length=MAX_REQUEST_BYTES)]


class RenewalAsk(Strict, frozen=True, kw_only=True):
    """What a renewal's envelope holds: a request for the new key."""

    v: Literal[1] = 1
    csr: Pem


class Renewed(Strict, frozen=True, kw_only=True):
    """The new certificate. It proves itself: the authority signed it, for the key asked for."""

    certificate: Pem


def ask(token: Token, body: bytes) -> Sealed:
    """Seal what a device asks."""
    return Sealed(token=token.id, body=body, mac=_mac(token, _ASK, body))


def asked(sealed: Sealed, token: Token) -> bytes:
    """The body of a request, raising `UntrustedError` where the token's secret did not seal it."""
    return _opened(sealed, token, _ASK)


def answer(token: Token, body: bytes) -> Sealed:
    """Seal what the coordinator answers."""
    return Sealed(token=token.id, body=body, mac=_mac(token, _ANSWER, body))


def answered(sealed: Sealed, token: Token) -> bytes:
    """The body of an answer, raising `UntrustedError` where the token's secret did not seal it."""
    return _opened(sealed, token, _ANSWER)


def decode(raw: bytes, kind: type[S], *, limit_bytes: int = MAX_REQUEST_BYTES) -> S:
    """Read a message from anybody, raising `MessageError` that names the wrong field."""
    if len(raw) > limit_bytes:
        raise MessageError(f"{kind.__name__}: {len(raw)} bytes, at most {limit_bytes} are read")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise MessageError(f"not a valid {kind.__name__}: {e}") from e


def client_id(name: str, key: SigningKey) -> str:
    """`NAME-` and 16 hex digits that follow from the key, and that nobody else can know.

    A broker that does not bind client ids to certificates ends one session for another of the same
    id: who could guess it could keep its owner away.
    """
    secret = hmac.new(key.pem(), b"edgekit client id", hashlib.sha256).hexdigest()
    return f"{name}-{secret[:16]}"


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def request_for(key: SigningKey) -> str:
    """A PKCS #10 request for a key, in PEM. It names nobody: the token or certificate does."""
    private = serialization.load_pem_private_key(key.pem(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = made.sign(private, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def requested_key(csr: str) -> PublicKey:
    """The key of a request that proves to hold its private half.

    Raises:
        MessageError: it is not such a request, or not for a P-256 key.
    """
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        key = request.public_key()
        proven = request.is_signature_valid
    except FOREIGN as e:
        raise MessageError("csr is not a certificate request in PEM, or for a foreign key") from e
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise MessageError("csr is for a key of another kind than P-256")
    if not proven:
        raise MessageError("csr is not signed by the key that it is for")
    return PublicKey(key)


def _opened(sealed: Sealed, token: Token, direction: bytes) -> bytes:
    same = sealed.token == token.id
    if not (hmac.compare_digest(sealed.mac, _mac(token, direction, sealed.body)) and same):
        raise UntrustedError(f"the message was not sealed with the secret of token {token.id}")
    return sealed.body


def _mac(token: Token, direction: bytes, body: bytes) -> bytes:
    derived = HKDF(
        algorithm=hashes.SHA256(), length=32, salt=bytes.fromhex(token.id), info=direction
    ).derive(token.secret)
    return hmac.new(derived, body, hashlib.sha256).digest()
