"""Payloads and topics: round trips, neighbours in version, garbage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import messages, topics
from edgekit.errors import MessageError
from edgekit.messages import Ack, Event, Message, Status
from tests.strategies import ids, payloads

KINDS = [
    messages.Status, messages.Telemetry, messages.Event, messages.Ack, messages.Desired,
    messages.Reported, messages.RoundOpen, messages.Refusal, messages.UpdateHeader,
]  # fmt: skip
BOOT = "0123456789abcdef"


@settings(max_examples=300)
@given(payloads)
def test_a_payload_comes_back_as_it_was_sent(message: Message) -> None:
    raw = messages.encode(message)

    assert messages.decode(raw, type(message), topic="t") == message
    assert messages.encode(messages.decode(raw, type(message), topic="t")) == raw


@given(payloads)
def test_a_field_of_a_later_version_is_ignored(message: Message) -> None:
    later = json.loads(messages.encode(message)) | {"from_the_future": [1, {}]}

    assert messages.decode(json.dumps(later).encode(), type(message), topic="t") == message


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_garbage_is_a_message_error_that_names_the_topic(kind: type[Message], raw: bytes) -> None:
    with pytest.raises(MessageError, match="edgekit/v1/s/d/t"):
        messages.decode(raw, kind, topic="edgekit/v1/s/d/t")


@settings(max_examples=300)
@given(payloads, st.data())
def test_a_damaged_payload_is_a_message_error_or_a_message(
    message: Message, data: st.DataObject
) -> None:
    raw = bytearray(messages.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = messages.decode(bytes(raw), type(message), topic="t")
    except MessageError:
        return
    assert isinstance(found, type(message))


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b'{"v":2,"boot":"0123456789abcdef","seq":1}', "Invalid enum value 2"),
        (b'{"boot":"0123456789ABCDEF","seq":1}', r"`\$.boot`"),
        (b'{"boot":"0123456789abcdef","seq":0}', r"`\$.seq`"),
        (b'{"boot":"0123456789abcdef","seq":1.5}', r"`\$.seq`"),
        (b'{"boot":"0123456789abcdef","seq":1e400}', "seq|range"),
        (b'{"boot":"0123456789abcdef"}', "missing required field `seq`"),
        (b'{"x":' * 5000, "Ack"),
        (b"[" * 200_000, "Ack"),
        (b" " * ((256 << 10) + 1), "at most 262144"),
    ],
)
def test_a_wrong_field_is_named(raw: bytes, match: str) -> None:
    with pytest.raises(MessageError, match=match):
        messages.decode(raw, Ack, topic="t")


def test_facts_become_plain_values() -> None:
    facts = messages.facts(path=Path("/x"), count=1, share=0.5, ok=True, none=None, name="n")

    assert facts == {"path": "/x", "count": 1, "share": 0.5, "ok": True, "none": None, "name": "n"}
    event = Event(boot=BOOT, seq=1, floor=1, at=0, kind="model_loaded", facts=facts)
    assert messages.decode(messages.encode(event), Event, topic="t") == event


def test_edges_of_the_histogram_are_the_same_everywhere() -> None:
    edges = messages.LATENCY_EDGES_US

    assert (len(edges), edges[0], edges[4], edges[-1]) == (89, 16, 32, 67_108_864)
    assert list(edges) == sorted(set(edges))


def test_a_last_will_is_small() -> None:
    assert messages.encode(Status(online=False, boot=BOOT)) == (
        b'{"v":1,"online":false,"boot":"0123456789abcdef","profile":"","version":""}'
    )


LEAVES = [
    topics.STATUS,
    topics.TELEMETRY,
    topics.EVENT,
    topics.REPORTED,
    topics.DESIRED,
    topics.ACK,
]


@given(ids, ids, st.sampled_from(LEAVES))
def test_a_topic_of_a_device_is_taken_apart_again(site: str, device: str, leaf: str) -> None:
    topic = topics.device(site, device, leaf)

    assert topics.parse(topic) == topics.DeviceTopic(site, device, leaf)
    assert matches(topics.every_device(site, leaf), topic)


@given(ids, ids, ids)
def test_a_topic_of_an_update_is_taken_apart_again(site: str, round_id: str, device: str) -> None:
    topic = topics.round_update(site, round_id, device)

    assert topics.parse(topic) == topics.UpdateTopic(site, round_id, device)
    assert matches(topics.every_update(site), topic)
    assert matches(topics.every_round_open(site), topics.round_open(site, round_id))
    assert topics.parse(topics.round_open(site, round_id)) is None
    assert topics.parse(topics.round_parameters(site, round_id)) is None


@given(
    st.text(max_size=60) | st.text("edgkit/v1rounspa-+#", max_size=40).map("edgekit/v1/".__add__)
)
def test_any_topic_can_be_parsed(topic: str) -> None:
    found = topics.parse(topic)

    if isinstance(found, topics.DeviceTopic):
        assert topics.device(found.site, found.device, found.leaf) == topic
    if isinstance(found, topics.UpdateTopic):
        assert topics.round_update(found.site, found.round, found.device) == topic


@pytest.mark.parametrize("value", ["", "A", "a/b", "+", "#", "a\n", "ä", "a" * 64, "rounds"])
def test_what_is_no_id_of_a_device_is_refused(value: str) -> None:
    with pytest.raises(MessageError, match="cannot be the id of a device"):
        topics.device("site", value, topics.STATUS)
    if value != "rounds":
        for make in (topics.every_update, topics.every_round_open):
            with pytest.raises(MessageError, match="cannot be the id of a site"):
                make(value)
        with pytest.raises(MessageError, match="cannot be the id of a round"):
            topics.round_open("site", value)


def matches(pattern: str, topic: str) -> bool:
    """MQTT's rule for filters with `+`."""
    one, two = pattern.split("/"), topic.split("/")
    return len(one) == len(two) and all(a in ("+", b) for a, b in zip(one, two, strict=True))
