"""Envelope: a payload and who signed it, as MQTT carries what a device obeys.

The form is DSSE (secure-systems-lab/dsse, envelope.md) in JSON, with one ECDSA P-256 signature.
Promise: `open_` gives a payload only where a trusted key signed exactly these bytes as exactly this
kind; nothing of a payload is read before. A signature over one kind is none over another.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated

import msgspec

from edgekit.errors import MessageError, UntrustedError
from edgekit.manifest import Sha256
from edgekit.messages import MAX_PAYLOAD_BYTES
from edgekit.signing import PublicKey, SigningKey, pae
from edgekit.structs import Strict

DESIRED = "application/vnd.edgekit.desired+json"
COMMAND = "application/vnd.edgekit.command+json"
ROUND = "application/vnd.edgekit.round+json"


class _Signature(Strict, frozen=True):
    keyid: Sha256
    sig: Annotated[str, msgspec.Meta(max_length=256)]


class _Envelope(Strict, frozen=True, kw_only=True):
    payload: str
    payloadType: str  # noqa: N815 - the wire's own name
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(min_length=1, max_length=1)]


def sign(payload: bytes, *, kind: str, key: SigningKey) -> bytes:
    """`payload` in an envelope.

    Args:
        payload: what is signed, as it is.
        kind: media type; part of what is signed.
        key: who signs.
    """
    signature = key.sign(pae(payload, kind=kind))
    return msgspec.json.encode(
        _Envelope(
            payload=base64.b64encode(payload).decode(),
            payloadType=kind,
            signatures=(_Signature(key.public.id, base64.b64encode(signature).decode()),),
        )
    )


def seal(payload: bytes, *, kind: str, key: SigningKey | None) -> bytes:
    """`payload` as it travels: in an envelope where there is a key, else as it is."""
    return payload if key is None else sign(payload, kind=kind, key=key)


def open_(raw: bytes, *, kind: str, trusted: Sequence[PublicKey], what: str) -> bytes:
    """The payload of an envelope that one of `trusted` signed.

    Args:
        raw: from anybody.
        kind: what the payload must have been signed as.
        trusted: whose word counts.
        what: names the message in errors, a topic for one.

    Raises:
        MessageError: it is not an envelope, or one of another kind.
        UntrustedError: none of these keys signed it.
    """
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"{what}: {len(raw)} bytes, a payload has at most {MAX_PAYLOAD_BYTES}")
    try:
        envelope = msgspec.json.decode(raw, type=_Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
        signature = base64.b64decode(envelope.signatures[0].sig, validate=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise MessageError(f"{what}: not a signed envelope: {e}") from e
    if envelope.payloadType != kind:
        raise MessageError(f"{what}: signed as {envelope.payloadType[:80]}, not as {kind}")
    signer = envelope.signatures[0].keyid
    for key in trusted:
        if key.id == signer and key.verify(signature, pae(payload, kind=kind)):
            return payload
    raise UntrustedError(
        f"{what}: signed by key {signer[:16]}…, which is not one of {len(trusted)} trusted keys,"
        " or not what it signed",
        hint="the fleet's control.pub lies beside the device's certificate",
    )
