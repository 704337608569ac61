"""A signed frame gives its payload to whoever knows the signer, and nothing to anybody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import signed_frame
from edgekit.errors import MessageError, UntrustedError
from edgekit.signing import SigningKey

KEY, STRANGER = SigningKey.generate(), SigningKey.generate()
KIND = signed_frame.UPDATE


@given(payload=st.binary(max_size=300))
def test_a_payload_comes_back_as_it_was(payload: bytes) -> None:
    frame = signed_frame.sign(payload, kind=KIND, key=KEY)
    known = [STRANGER.public, KEY.public]

    assert signed_frame.open_(frame, kind=KIND, trusted=known, what="x") == payload
    assert len(frame) <= len(payload) + 74


@given(payload=st.binary(max_size=40), data=st.data())
def test_a_frame_with_a_changed_byte_is_refused(payload: bytes, data: st.DataObject) -> None:
    frame = bytearray(signed_frame.sign(payload, kind=KIND, key=KEY))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))

    with pytest.raises((MessageError, UntrustedError)):
        signed_frame.open_(bytes(frame), kind=KIND, trusted=[KEY.public], what="x")


@given(raw=st.binary(max_size=200))
def test_bytes_of_strangers_are_refused(raw: bytes) -> None:
    for text in (raw, b"\x01" + raw):
        with pytest.raises((MessageError, UntrustedError)):
            signed_frame.open_(text, kind=KIND, trusted=[KEY.public], what="x")


def test_a_frame_of_another_kind_or_signer_is_refused() -> None:
    frame = signed_frame.sign(b"x", kind=KIND, key=KEY)

    with pytest.raises(UntrustedError, match="none of 1 known keys signed it"):
        signed_frame.open_(frame, kind=KIND, trusted=[STRANGER.public], what="x")
    with pytest.raises(UntrustedError):
        signed_frame.open_(frame, kind="application/x", trusted=[KEY.public], what="x")
