"""Batches: what goes in comes out, and no bytes can make a reader unfold more than a payload."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import batches, messages
from edgekit.batches import DICTIONARIES, MAGIC, MAX_MESSAGES, NEWEST
from edgekit.errors import MessageError
from edgekit.messages import MAX_PAYLOAD_BYTES
from tests.strategies import payloads

TOPIC = "edgekit/v1/s/d/telemetry"


@settings(max_examples=40)
@given(st.lists(payloads.map(messages.encode), min_size=1, max_size=20))
def test_messages_come_back_as_they_went_in(texts: list[bytes]) -> None:
    assert batches.unpack(batches.pack(texts), topic=TOPIC) == texts


def test_a_plain_message_is_a_payload_too() -> None:
    assert batches.unpack(b'{"v":1}', topic=TOPIC) == [b'{"v":1}']
    assert batches.unpack(b"", topic=TOPIC) == [b""]


@given(st.lists(st.integers(1, MAX_PAYLOAD_BYTES * 2), max_size=700))
def test_what_fits_is_never_longer_than_a_payload(sizes: list[int]) -> None:
    count = batches.fitting(sizes)

    assert sum(sizes[:count]) <= MAX_PAYLOAD_BYTES
    assert count <= MAX_MESSAGES


def test_text_that_cannot_be_shortened_still_fits_a_payload() -> None:
    texts = [bytes(33 + (i * j * 2654435761 >> 7) % 90 for j in range(1000)) for i in range(1, 300)]
    some = texts[: batches.fitting([len(text) for text in texts])]

    assert len(batches.pack(some)) <= MAX_PAYLOAD_BYTES
    assert batches.unpack(batches.pack(some), topic=TOPIC) == some


@given(st.binary(max_size=200))
def test_garbage_is_a_message_error_that_names_the_topic(garbage: bytes) -> None:
    with pytest.raises(MessageError, match=TOPIC):
        batches.unpack(bytes((MAGIC, NEWEST)) + garbage, topic=TOPIC)


@given(st.data())
def test_a_damaged_batch_is_refused_or_unfolds_to_no_more_than_a_payload(
    data: st.DataObject,
) -> None:
    raw = bytearray(
        batches.pack([b'{"v":1,"boot":"0123456789abcdef","seq":%d}' % n for n in range(9)])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = batches.unpack(bytes(raw), topic=TOPIC)
    except MessageError:
        return
    assert sum(map(len, found)) <= MAX_PAYLOAD_BYTES


@pytest.mark.parametrize(
    "text", [b"x" * (100 << 20), b"x" * (MAX_PAYLOAD_BYTES + 1), b"\n" * (MAX_MESSAGES + 1)]
)
def test_a_bomb_is_refused(text: bytes) -> None:
    packer = zlib.compressobj(9, zdict=DICTIONARIES[1])
    bomb = bytes((MAGIC, 1)) + packer.compress(text) + packer.flush()

    with pytest.raises(MessageError):
        batches.unpack(bomb, topic=TOPIC)


def test_a_batch_that_is_cut_off_or_goes_on_is_refused() -> None:
    whole = batches.pack([b'{"v":1}'])

    for wrong in (whole[:-1], whole + b"x", whole[:1], whole[:2]):
        with pytest.raises(MessageError):
            batches.unpack(wrong, topic=TOPIC)


def test_an_unknown_dictionary_is_refused_by_name() -> None:
    with pytest.raises(MessageError, match="dictionary 200"):
        batches.unpack(bytes((MAGIC, 200)) + b"x", topic=TOPIC)


def test_a_dictionary_that_devices_use_stays_as_it_is_and_is_there_for_strangers() -> None:
    assert {number: zlib.adler32(text) for number, text in DICTIONARIES.items()} == {1: 0x1610B701}
    documents = Path(__file__).parents[2] / "docs"
    for number, text in DICTIONARIES.items():
        assert (documents / f"batch-dictionary-{number}.bin").read_bytes() == text
