"""Tokens: who may ask from other machines, in one file that only its owner can read.

Each line is `NAME TOKEN`, or `NAME TOKEN admin` where its bearer may also load and unload models;
empty lines and lines that begin with `#` are skipped. Names tell bearers apart, so that one can be
taken out. In memory there are digests only, and no message carries a token.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.errors import ConfigError
from edgekit_runtime.serving.watch import Watch

log = logging.getLogger(__name__)

ADMIN = "admin"
MAX_TOKENS = 256
MAX_FILE_BYTES = 1 << 16
# What can be guessed is no token: 24 characters of base64 hold 144 bits.
MIN_TOKEN_CHARS = 24
HINT = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes a token"

# RFC 6750, 2.1: b64token.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_BEARER = re.compile(rf"(?i:bearer) +({_TOKEN.pattern}) *")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")


class Token(msgspec.Struct, frozen=True):
    """One line of the file.

    Attributes:
        name: of its bearer.
        digest: sha256 of the token.
        is_admin: whether its bearer may change what the server serves.
    """

    name: str
    digest: bytes
    is_admin: bool


def presented(authorization: str) -> bytes | None:
    """Digest of the bearer token in an `Authorization` header; `None` where it holds none."""
    match = _BEARER.fullmatch(authorization)
    return _digest(match[1]) if match else None


def find(tokens: Sequence[Token], digest: bytes | None) -> Token | None:
    """The token with this digest. How long it takes does not depend on which one it is."""
    found: Token | None = None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest or b""):
            found = token
    return found


def parse(text: str, *, what: str) -> tuple[Token, ...]:
    """Read the lines of a token file, raising `ConfigError` with `what` and the line's number."""
    found: dict[str, Token] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{what}, line {number}"
        name, *rest = line.split() or [""]
        if not name or name.startswith("#"):
            continue
        if not rest or rest[1:] not in ([], [ADMIN]):
            raise ConfigError(f"{where} is not NAME TOKEN or NAME TOKEN {ADMIN}")
        secret = rest[0]
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{where}: a name has 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-'")
        if not _TOKEN.fullmatch(secret) or len(secret) < MIN_TOKEN_CHARS:
            raise ConfigError(
                f"{where}: the token of {name} is not {MIN_TOKEN_CHARS} or more of A-Z, a-z, 0-9"
                " and -._~+/",
                hint=HINT,
            )
        token = Token(name, _digest(secret), rest[1:] == [ADMIN])
        if name in found or token.digest in digests:
            raise ConfigError(f"{where}: {name} or its token is there twice")
        found[name] = token
        digests.add(token.digest)
    if not 1 <= len(found) <= MAX_TOKENS:
        raise ConfigError(f"{what} has {len(found)} tokens, not 1 to {MAX_TOKENS}", hint=HINT)
    return tuple(found.values())


def read(path: Path) -> tuple[Token, ...]:
    """The tokens in a file that belongs to us or to root, and that nobody else can read.

    Raises:
        ConfigError: it cannot be read, others can read it, or a line is wrong.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"token file {path} cannot be read: {e.strerror}") from e
    if status.st_mode & 0o077:
        raise ConfigError(f"token file {path} can be read by others", hint=f"chmod 600 {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"token file {path} belongs to another user",
            hint=f"make a file of your own, or chown {os.geteuid()} {path}",
        )
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"token file {path} has more than {MAX_FILE_BYTES} bytes")
    try:
        return parse(raw.decode(), what=f"token file {path}")
    except UnicodeDecodeError as e:
        raise ConfigError(f"token file {path} is not text") from e


class TokenFile:
    """The tokens that are valid now. Used on the event loop.

    A file that went missing or wrong lets nobody in until it is right again: a token that was
    taken out must not live on for somebody's typing error.

    Raises:
        ConfigError: see `read`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Before reading: a change in between is then seen later, not lost.
        self._watch = Watch(path)
        self._tokens = read(path)

    def find(self, digest: bytes | None) -> Token | None:
        """The valid token with this digest."""
        return find(self._tokens, digest)

    def refresh(self) -> bool:
        """Read the file again where it changed; whether it did."""
        if not self._watch.changed():
            return False
        try:
            self._tokens = read(self._path)
        except ConfigError as e:
            self._tokens = ()
            log.error("no token is valid: %s", e.with_hint)
        else:
            names = [token.name for token in self._tokens]
            log.info("tokens were read again", extra={"names": names})
        return True


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
