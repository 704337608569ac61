"""Keys and signatures of bundles: ECDSA P-256 in a DSSE envelope around an in-toto statement.

The signature covers every entry, `reports/` included, in the form that OpenSSF `model_signing
verify` 1.1 accepts for the unpacked folder. Only `cryptography` is needed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit import storage
from edgekit.errors import (
    ConfigError,
    IntegrityError,
    ManifestError,
    StorageError,
    UntrustedError,
)
from edgekit.manifest import EntryName, Sha256, canonical, decode_json
from edgekit.structs import Strict

ENTRY = "signature.sigstore.json"
KEY_FILE = "edgekit.key"
PUBLIC_FILE = "edgekit.pub"
MAX_KEY_BYTES = 64 << 10

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [ENTRY],
}
_SCHEME = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class PublicKey:
    """A key that may be trusted. `id` is the sha256 of its PEM, in hex."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self.pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.id = hashlib.sha256(self.pem).hexdigest()

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Read a PEM file, raising `ConfigError` where it holds no P-256 public key."""
        try:
            return cls.parse(_pem(path), what=str(path))
        except OSError as e:
            raise ConfigError(f"public key {path} cannot be read: {e.strerror}") from e

    @classmethod
    def parse(cls, pem: bytes, *, what: str) -> PublicKey:
        """A key in PEM, raising `ConfigError` that names `what` where it is no P-256 key."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as e:
            raise ConfigError(f"{what} is not a public key in PEM") from e
        if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
            raise ConfigError(f"{what} is not a P-256 key", hint="edgekit keys new DIR makes one")
        return cls(key)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether this key made `signature` over `message`."""
        try:
            self._key.verify(signature, message, _SCHEME)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private P-256 key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Read an unencrypted PEM file that nobody but its owner can read."""
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(
                    f"private key {path} can be read by others", hint=f"chmod 600 {path}"
                )
            key = serialization.load_pem_private_key(_pem(path), password=None)
        except OSError as e:
            raise ConfigError(f"private key {path} cannot be read: {e.strerror}") from e
        except (ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise ConfigError(f"{path} is not an unencrypted private key in PEM") from e
        if not (
            isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
        ):
            raise ConfigError(f"{path} is not a P-256 key", hint="edgekit keys new DIR makes one")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """A deterministic signature (RFC 6979) in DER."""
        return self._key.sign(message, _SCHEME)

    def pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def _pem(path: Path) -> bytes:
    """The content of a key file, and no more of any other file than a key can have."""
    with path.open("rb") as file:
        return file.read(MAX_KEY_BYTES)


def new_pair(folder: Path) -> tuple[Path, Path]:
    """Write `edgekit.key` (0600) and `edgekit.pub`; existing keys are never replaced."""
    private, public = folder / KEY_FILE, folder / PUBLIC_FILE
    for path in (private, public):
        if path.exists():
            raise StorageError(f"{path} is there already", hint="name another folder")
    storage.make_folder(folder, mode=0o700)
    key = SigningKey.generate()
    storage.write(private, key.pem(), mode=0o600, exclusive=True)
    storage.write(public, key.public.pem, exclusive=True)
    return private, public


def own_key() -> SigningKey:
    """This workstation's signing key; the first call makes the pair and trusts it here.

    The public file is written last and tells that all is done, so that a first call that was cut
    short, or two at once, end in one pair.
    """
    folder = storage.config_home() / "keys"
    private, public = folder / KEY_FILE, folder / PUBLIC_FILE
    if not private.exists():
        storage.make_folder(folder, mode=0o700)
        with contextlib.suppress(storage.FileExists):
            storage.write(private, SigningKey.generate().pem(), mode=0o600, exclusive=True)
    key = SigningKey.read(private)
    if not public.exists():
        storage.make_folder(trust_folder(), mode=0o700)
        storage.write(trust_folder() / PUBLIC_FILE, key.public.pem)
        storage.write(public, key.public.pem)
    return key


def trust_folder() -> Path:
    """Where `run` and `verify` find the keys that this workstation trusts."""
    return storage.config_home() / "trust.d"


def trusted_keys(extra: Sequence[Path] = ()) -> list[PublicKey]:
    """Keys in the trust folder (`*.pub`) and in the files of `extra`."""
    return [PublicKey.read(path) for path in [*sorted(trust_folder().glob("*.pub")), *extra]]


def sign(name: str, digests: Mapping[str, str], key: SigningKey) -> bytes:
    """The content of `signature.sigstore.json`.

    Args:
        name: name of the one subject; for people, nothing compares it.
        digests: entry name to sha256 in hex, of every entry but the signature.
        key: who signs.
    """
    payload = canonical(_statement(name, digests))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _PAYLOAD_TYPE,
        "signatures": [
            {
                "sig": base64.b64encode(key.sign(pae(payload, kind=_PAYLOAD_TYPE))).decode(),
                "keyid": "",
            }
        ],
    }
    return canonical(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key.public.id}, "tlogEntries": []},
            "dsseEnvelope": envelope,
        }
    )


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A signature file, read; `digests` is what it signs, in its order."""

    hint: str
    sig: bytes
    payload: bytes
    digests: dict[str, str]

    def check(self, digests: Mapping[str, str]) -> None:
        """Compare what was signed with what is there, raising `IntegrityError` for a difference."""
        for name in sorted({*digests, *self.digests}):
            if name not in self.digests:
                raise IntegrityError(f"{name} is not covered by the signature")
            if name not in digests:
                raise IntegrityError(f"{name} is signed, but not there")
            if digests[name] != self.digests[name]:
                raise IntegrityError(f"{name}: sha256 differs from what was signed")

    def signer(self, trusted: Sequence[PublicKey]) -> PublicKey:
        """The trusted key that made this signature.

        Raises:
            UntrustedError: none of `trusted` did.
            IntegrityError: one did, and the signature names another.
        """
        message = pae(self.payload, kind=_PAYLOAD_TYPE)
        for key in trusted:
            if key.verify(self.sig, message):
                if key.id != self.hint:
                    raise IntegrityError(f"{ENTRY} names another key than the one that signed")
                return key
        raise UntrustedError(
            f"signed by key {self.hint[:16]}…, which is not one of {len(trusted)} trusted keys",
            hint="--trust PUBKEY names a key to trust",
        )


def decode(raw: bytes) -> Signature:
    """Read a signature file, raising `IntegrityError` where its form is not the one we accept."""
    try:
        bundle = msgspec.convert(decode_json(raw, ENTRY), _SigstoreBundle)
        payload = base64.b64decode(bundle.dsseEnvelope.payload, validate=True)
        sig = base64.b64decode(bundle.dsseEnvelope.signatures[0].sig, validate=True)
        statement = decode_json(payload, f"the statement of {ENTRY}")
        resources = msgspec.convert(statement["predicate"]["resources"], list[_Resource])
        name = msgspec.convert(statement["subject"][0]["name"], str)
    except (ManifestError, msgspec.MsgspecError, ValueError, LookupError, TypeError) as e:
        raise IntegrityError(f"{ENTRY} is not a signature of a bundle: {e}") from e
    digests = {resource.name: resource.digest for resource in resources}
    if statement != _statement(name, digests):
        raise IntegrityError(f"{ENTRY} signs a statement of another form, order or digest")
    hint = bundle.verificationMaterial.publicKey.hint
    return Signature(hint=hint, sig=sig, payload=payload, digests=digests)


class _Hint(Strict, frozen=True):
    hint: Sha256


class _Material(Strict, frozen=True):
    publicKey: _Hint  # noqa: N815 - the wire's own name
    tlogEntries: Annotated[list[Any], msgspec.Meta(max_length=0)] = []  # noqa: N815


class _Sig(Strict, frozen=True):
    sig: str
    keyid: str = ""


class _Envelope(Strict, frozen=True):
    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815
    signatures: Annotated[list[_Sig], msgspec.Meta(min_length=1, max_length=1)]


class _SigstoreBundle(Strict, frozen=True):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]  # noqa: N815
    verificationMaterial: _Material  # noqa: N815
    dsseEnvelope: _Envelope  # noqa: N815


class _Resource(Strict, frozen=True):
    name: EntryName
    algorithm: Literal["sha256"]
    digest: Sha256


def _statement(name: str, digests: Mapping[str, str]) -> dict[str, Any]:
    names = sorted(digests)
    root = hashlib.sha256(b"".join(bytes.fromhex(digests[entry]) for entry in names)).hexdigest()
    resources = [
        {"algorithm": "sha256", "digest": digests[entry], "name": entry} for entry in names
    ]
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {"serialization": _SERIALIZATION, "resources": resources},
    }


def pae(payload: bytes, *, kind: str) -> bytes:
    """DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol.md)."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)
