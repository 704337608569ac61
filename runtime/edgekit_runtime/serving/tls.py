"""Tls: the files that a listener proves itself with, and against which it checks its clients."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from edgekit.errors import ConfigError
from edgekit.structs import Strict

MAX_PEM_BYTES = 1 << 20


class Tls(Strict, frozen=True, kw_only=True):
    """TLS for every TCP listener of a server.

    Attributes:
        cert: the server's certificate (PEM), followed by those between it and its root.
        key: its private key (PEM, not encrypted), which nobody but its owner can read.
        client_ca: certificates (PEM) of which one must have issued the client's; without it
            clients need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.cert, self.key, *((self.client_ca,) if self.client_ca else ()))


def context(tls: Tls) -> ssl.SSLContext:
    """What the event loop needs, raising `ConfigError` that names the file."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    load(tls, made)
    if tls.client_ca is not None:
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def load(tls: Tls, into: ssl.SSLContext) -> None:
    """Read the files into a context; connections made from then on use them.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    pem(tls)
    try:
        # An encrypted key would else ask the terminal, and wait for an answer.
        into.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{tls.cert} and {tls.key} are not a certificate and its unencrypted private key in PEM"
        ) from e
    if tls.client_ca is None:
        return
    try:
        into.load_verify_locations(tls.client_ca)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{tls.client_ca} holds no certificate in PEM") from e


def pem(tls: Tls) -> tuple[bytes, ...]:
    """The files' bytes: certificate, key and, where there is one, the client authority's.

    Raises:
        ConfigError: a file cannot be read, or others can read the key.
    """
    return tuple(_read(path, is_private=path == tls.key) for path in tls.files)


def _read(path: Path, *, is_private: bool) -> bytes:
    try:
        with path.open("rb") as file:
            if is_private and os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(
                    f"private key {path} can be read by others", hint=f"chmod 600 {path}"
                )
            return file.read(MAX_PEM_BYTES)
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from e
