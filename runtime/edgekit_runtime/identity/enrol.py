"""Enrol: a token for an identity. The key is made here and never leaves.

The answer is believed because the token's secret sealed it, and for this very question; see
`edgekit.enrolment`. A cut at any moment leaves the old identity or none, and the same token can be
used again from here, for the key that asked first is kept until an answer came.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit import enrolment
from edgekit.clock import Clock
from edgekit.enrolment import MAX_ANSWER_BYTES, Answer, Ask, Sealed, Token
from edgekit.errors import UntrustedError
from edgekit_runtime.fetch.connection import tls_context
from edgekit_runtime.identity import files
from edgekit_runtime.identity.identity import (
    AUTHORITY,
    CERTIFICATE,
    CONTROL,
    FACTS,
    HTTPS,
    KEY,
    RELEASE,
    ROOT,
    Identity,
)
from edgekit_runtime.identity.office import Office


def enroll(
    folder: Path,
    token: Token,
    *,
    coordinator: str,
    name: str | None,
    clock: Clock,
    ca: Path | None = None,
) -> Identity:
    """Get an identity and put it in `folder`; one that is there is replaced.

    Args:
        coordinator: its URL.
        name: `SITE/DEVICE` that this device is configured to be; `None` takes the token's word.
        clock: for time limits.
        ca: authorities that are trusted beside the system's where the coordinator's URL is https;
            kept with the identity, for renewals and for repositories.

    Raises:
        LinkError: nothing answers; the same call may be made again.
        FleetError: the token is unknown, expired, used, or for another device.
        UntrustedError: somebody else than the token's maker answered, or nobody vouches for the
            coordinator's certificate.
        StorageError, ConfigError: the folder cannot be written, or `ca` holds no certificates.
    """
    given = b"" if ca is None else _authorities(ca)
    key = files.pending_key(folder, token.id)
    body = msgspec.json.encode(Ask(csr=enrolment.request_for(key), name=name))
    sealed = msgspec.json.encode(enrolment.ask(token, body))
    raw = Office(coordinator, clock, ca).post(enrolment.ENROLL_PATH, sealed)
    answer = opened(raw, token, body)
    content = {
        KEY: key.pem(),
        CERTIFICATE: answer.certificate.encode(),
        AUTHORITY: answer.ca.encode(),
        CONTROL: answer.control.encode(),
        RELEASE: answer.release.encode(),
        ROOT: answer.root.encode(),
        FACTS: msgspec.json.format(msgspec.json.encode(answer.facts)),
        HTTPS: answer.ca.encode() + given,
    }
    files.switch(folder, content, check=Identity.read)
    files.drop_pending(folder)
    return Identity.read(folder)


def opened(raw: bytes, token: Token, body: bytes) -> Answer:
    """The answer to the question `body`.

    Raises:
        MessageError: it is not one.
        UntrustedError: the token's secret did not seal it, or for another question.
    """
    sealed = enrolment.decode(raw, Sealed, limit_bytes=2 * MAX_ANSWER_BYTES)
    inner = enrolment.answered(sealed, token)
    answer = enrolment.decode(inner, Answer, limit_bytes=MAX_ANSWER_BYTES)
    if answer.request != enrolment.sha256(body):
        raise UntrustedError("the answer is for another question than was asked")
    return answer


def _authorities(ca: Path) -> bytes:
    """What is in a file of certificates, checked to be one."""
    tls_context(ca)
    return b"\n" + ca.read_bytes()
