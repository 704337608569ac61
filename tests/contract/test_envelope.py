"""Signed envelopes: what a trusted key signed comes out as it went in; nothing else comes out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import envelope
from edgekit.errors import MessageError, UntrustedError
from edgekit.signing import SigningKey

KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
KIND = envelope.DESIRED


def open_(raw: bytes, *, kind: str = KIND, key: SigningKey = KEY) -> bytes:
    return envelope.open_(raw, kind=kind, trusted=[STRANGER.public, key.public], what="topic")


@given(st.binary(max_size=500))
def test_a_payload_comes_out_as_it_was_signed(payload: bytes) -> None:
    assert open_(envelope.sign(payload, kind=KIND, key=KEY)) == payload


@given(st.binary(min_size=1, max_size=60), st.data())
def test_no_changed_byte_lets_another_payload_through(payload: bytes, data: st.DataObject) -> None:
    raw = bytearray(envelope.sign(payload, kind=KIND, key=KEY))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))

    try:
        found = open_(bytes(raw))
    except (MessageError, UntrustedError):
        return
    assert found == payload


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_the_name_of_their_topic(raw: bytes) -> None:
    with pytest.raises(MessageError, match="topic"):
        open_(raw)


def test_a_signature_over_one_kind_is_none_over_another() -> None:
    raw = envelope.sign(b"{}", kind=envelope.COMMAND, key=KEY)

    with pytest.raises(MessageError, match=r"signed as application/vnd\.edgekit\.command"):
        open_(raw)

    renamed = json.loads(raw)
    renamed["payloadType"] = KIND
    with pytest.raises(UntrustedError):
        open_(json.dumps(renamed).encode())


def test_a_stranger_signs_in_vain() -> None:
    raw = envelope.sign(b"{}", kind=KIND, key=STRANGER)

    with pytest.raises(UntrustedError, match="topic"):
        envelope.open_(raw, kind=KIND, trusted=[KEY.public], what="topic")


def test_a_strangers_signature_under_a_trusted_name_is_refused() -> None:
    forged = json.loads(envelope.sign(b"{}", kind=KIND, key=STRANGER))
    forged["signatures"][0]["keyid"] = KEY.public.id

    with pytest.raises(UntrustedError):
        open_(json.dumps(forged).encode())


@pytest.mark.parametrize("signatures", [[], "twice"])
def test_an_envelope_has_one_signature(signatures: object) -> None:
    made = json.loads(envelope.sign(b"{}", kind=KIND, key=KEY))
    made["signatures"] = made["signatures"] * 2 if signatures == "twice" else signatures

    with pytest.raises(MessageError):
        open_(json.dumps(made).encode())


def test_what_is_larger_than_a_payload_is_not_read() -> None:
    with pytest.raises(MessageError, match="at most"):
        open_(b" " * (256 << 10) + b"{}")
