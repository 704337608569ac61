"""Batches: many counted messages in one MQTT payload, compressed against a dictionary.

A batch is `0xB1`, the number of a dictionary, and one zlib stream (RFC 1950) of the messages' JSON
texts, one a line. Both sides carry the dictionaries, so that what messages have in common does not
travel. A reader unfolds no further than one payload may be long: no sender can fill its memory.

The first byte tells a batch from a plain message, which begins with `{`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from edgekit.errors import MessageError
from edgekit.messages import MAX_PAYLOAD_BYTES

MAGIC = 0xB1
MAX_MESSAGES = 500
_HEAD_BYTES = 2
# Text that zlib cannot shorten grows a little; the payload must still be within its limit.
_MOST_TEXT_BYTES = MAX_PAYLOAD_BYTES - 1024
_NEWLINE = b"\n"

# What messages have in common, the most frequent last: near matches take fewer bits. A dictionary
# that devices use never changes; a better one gets the next number.
DICTIONARIES: dict[int, bytes] = {
    1: (
        b'"kind":"outbox_dropped","level":"error","kind":"drift","level":"warning",'
        b'"kind":"started","level":"info","message":"","facts":{"model":"","version":"'
        b'"about":{"edgekit":"0.1.0","python":"3.11.2","machine":"aarch64","system":"Linux 6.1.0",'
        b'"engines":{"litert":"2.3.0","onnxruntime":"1.23.2"}},'
        b'"slots":{"":{"version":"1.0.0","digest":"sha256:","state":"idle","target":null,'
        b'"target_digest":null,"reason":null,"detail":null,"progress":null,"figures":{}}},'
        b'"state":"confirmed","drift":[{"model":"","version":"1.0.0","rows":4000,"windows":1,'
        b'"alarms":1,"drifts":true,"p":0.5,"distance":0.05,"feature":"input channel 0 mean",'
        b'"sketch":{"reference":"","rows":4000,"counts":"eJx'
        b'"cancelled":1,"throttled":["under-voltage"],"power_w":5.0,'
        b'"outbox":{"waiting":1,"dropped":{"telemetry":1,"event":1,"error":1},"dropped_bytes":1000}}'
        b'{"v":1,"boot":"","seq":1,"floor":1,"at":17953060,"up":1000,"sent":1000,'
        b'"period_s":60.0,"models":[{"model":"","version":"1.0.0","variant":"float",'
        b'"variant":"int8","requests":1200,"errors":0,"rejected":0,"engine_us":10000,'
        b'"latency_us":{"28":1,"29":1,"30":1,"31":1,"32":1,"33":1,"34":1,"35":1,"36":1,"37":1,'
        b'"38":1,"39":1,"40":1,"41":1,"42":1,"43":1,"44":1,"45":1,"46":1,"47":1,"48":1}},'
        b'{"model":"}],"told":{"about":1,"drift":1,"slots":1},"about":null,"slots":null,"drift":[],'
        b'"resources":{"cpu_s":0.5,"rss_bytes":80000000,"memory_free_bytes":1000000000,'
        b'"disk_free_bytes":10000000000,"temperature_c":50.0,"clock_mhz":1800.0},"outbox":{}}\n'
        b'{"v":1,"boot":"'
    ),
}
NEWEST = max(DICTIONARIES)


def pack(texts: Sequence[bytes], *, dictionary: int = NEWEST) -> bytes:
    """Put the JSON texts of messages into one payload.

    Args:
        texts: at most as many as `fitting` lets through.
        dictionary: its number; the reader must know it.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zdict=DICTIONARIES[dictionary])
    return bytes((MAGIC, dictionary)) + packer.compress(_NEWLINE.join(texts)) + packer.flush()


def fitting(sizes_bytes: Sequence[int]) -> int:
    """How many of these messages, from the first, one batch may hold; 0 where even one is too long.

    Args:
        sizes_bytes: of the texts.
    """
    total = 0
    for count, size in enumerate(sizes_bytes[:MAX_MESSAGES]):
        total += size + len(_NEWLINE)
        if total > _MOST_TEXT_BYTES:
            return count
    return min(len(sizes_bytes), MAX_MESSAGES)


def unpack(payload: bytes, *, topic: str) -> list[bytes]:
    """The texts in a payload, which is a batch or a plain message: then that alone.

    Raises:
        MessageError: a batch that is damaged, too long, or made with an unknown dictionary.
    """
    if payload[:1] != bytes((MAGIC,)):
        return [payload]
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"{topic}: a batch of {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES}")
    text = _unfolded(payload, topic=topic)
    lines = text.split(_NEWLINE, MAX_MESSAGES)
    if len(lines) > MAX_MESSAGES:
        raise MessageError(f"{topic}: a batch of more than {MAX_MESSAGES} messages")
    return lines


def _unfolded(payload: bytes, *, topic: str) -> bytes:
    number = payload[1] if len(payload) > 1 else 0
    if number not in DICTIONARIES:
        raise MessageError(
            f"{topic}: a batch with dictionary {number}, known are {sorted(DICTIONARIES)}",
            hint="update edgekit on this side",
        )
    unpacker = zlib.decompressobj(zdict=DICTIONARIES[number])
    try:
        text = unpacker.decompress(payload[_HEAD_BYTES:], MAX_PAYLOAD_BYTES)
    except zlib.error as e:
        raise MessageError(f"{topic}: a batch that cannot be unfolded: {e}") from e
    if not unpacker.eof or unpacker.unused_data:
        raise MessageError(
            f"{topic}: a batch that is cut off, has bytes behind it, or unfolds to more than"
            f" {MAX_PAYLOAD_BYTES} bytes"
        )
    return text
