"""Signed frame: bytes with a signature before them, for what base64 in an envelope would make long.

Layout: `0x01`, the length of the signature in one byte, the signature (ECDSA P-256 with SHA-256, in
DER), the payload. What is signed is DSSE's pre-authentication encoding of kind and payload, as in
`edgekit.envelope`. Promise: `open_` gives a payload only where a trusted key signed exactly these
bytes as exactly this kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import MessageError, UntrustedError
from edgekit.signing import PublicKey, SigningKey, pae

UPDATE = "application/vnd.edgekit.update"

_MARK = 0x01
_HEAD_BYTES = 2


def sign(payload: bytes, *, kind: str, key: SigningKey) -> bytes:
    """`payload` with the signature of `key` before it.

    Args:
        payload: what is signed, as it is.
        kind: media type; part of what is signed, not of the frame.
        key: who signs.
    """
    signature = key.sign(pae(payload, kind=kind))
    return bytes([_MARK, len(signature)]) + signature + payload


def open_(raw: bytes, *, kind: str, trusted: Sequence[PublicKey], what: str) -> bytes:
    """The payload of a frame that one of `trusted` signed as `kind`.

    Raises:
        MessageError: it is no signed frame; the message names `what`.
        UntrustedError: none of these keys signed it.
    """
    if len(raw) < _HEAD_BYTES or raw[0] != _MARK or len(raw) < _HEAD_BYTES + raw[1]:
        raise MessageError(f"{what}: not a signed frame")
    begin = _HEAD_BYTES + raw[1]
    signature, payload = raw[_HEAD_BYTES:begin], raw[begin:]
    signed = pae(payload, kind=kind)
    if not any(key.verify(signature, signed) for key in trusted):
        raise UntrustedError(f"{what}: none of {len(trusted)} known keys signed it")
    return payload
