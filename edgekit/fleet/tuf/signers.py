"""Signers: key files of a fleet as TUF's library takes them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key

from edgekit import storage
from edgekit.errors import ConfigError, FleetError
from edgekit.signing import SigningKey


def read(path: Path, *, role: str) -> CryptoSigner:
    """The signer of a key file.

    Raises:
        FleetError: the file is not here; `role` says what for it is needed.
        ConfigError: it holds no P-256 key, others can read it, or we cannot.
    """
    if not is_here(path):
        raise FleetError(
            f"{path} is needed to sign {role} and is not here",
            hint="bring the key to this folder, or run this where the key is",
        )
    return of(SigningKey.read(path))


def present(path: Path) -> CryptoSigner | None:
    """The signer of a key file that may have been moved away."""
    return of(SigningKey.read(path)) if is_here(path) else None


def is_here(path: Path) -> bool:
    """Whether a key file is in its place, raising `ConfigError` where we may not look there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        raise ConfigError(
            f"private key {path} cannot be read: {e.strerror}",
            hint="run this as the user whose key it is",
        ) from e
    return True


def of(key: SigningKey) -> CryptoSigner:
    """The signer of a key."""
    private = load_pem_private_key(key.pem(), password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError("the key is not a P-256 key", hint="edgekit keys new DIR makes one")
    return CryptoSigner(private)


def new(path: Path) -> CryptoSigner:
    """The signer of a new key at `path` (0600); one that is there already is taken."""
    if not is_here(path):
        storage.write(path, SigningKey.generate().pem(), mode=0o600, exclusive=True)
    return of(SigningKey.read(path))


def public(*signers: CryptoSigner) -> dict[str, Key]:
    """Public keys by their id."""
    return {signer.public_key.keyid: signer.public_key for signer in signers}
