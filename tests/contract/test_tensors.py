"""Arrays as bytes: round trips, bounded unfolding, garbage."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import tensors
from edgekit.errors import MessageError
from edgekit.messages import ParametersHeader
from tests.strategies import arrays

HEADER = ParametersHeader(round="r1")
LIMIT = 1 << 20


def same(one: tensors.Arrays, two: tensors.Arrays) -> bool:
    return one.keys() == two.keys() and all(
        array.dtype == two[name].dtype
        and array.shape == two[name].shape
        and array.tobytes() == two[name].tobytes()
        for name, array in one.items()
    )


def safetensors(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@given(arrays)
def test_arrays_come_back_with_datatype_shape_and_bits(given_arrays: tensors.Arrays) -> None:
    assert same(tensors.decode(tensors.encode(given_arrays), what="it"), given_arrays)


@given(arrays)
def test_a_frame_comes_back_with_its_header(given_arrays: tensors.Arrays) -> None:
    frame = tensors.pack(HEADER, given_arrays)

    header, found = tensors.unpack(frame, ParametersHeader, max_bytes=LIMIT, what="it")

    assert header == HEADER
    assert same(found, given_arrays)


@given(arrays, st.randoms())
def test_the_digest_depends_on_content_and_not_on_order_or_memory(
    given_arrays: tensors.Arrays, random: Any
) -> None:
    names = list(given_arrays)
    random.shuffle(names)
    shuffled = {name: np.asfortranarray(given_arrays[name]) for name in names}
    shuffled = {name: array.reshape(given_arrays[name].shape) for name, array in shuffled.items()}

    assert tensors.digest(shuffled) == tensors.digest(given_arrays)
    assert tensors.digest({**given_arrays, "more": np.zeros(1)}) != tensors.digest(given_arrays)


def test_arrays_of_another_byte_order_and_stride_keep_their_values() -> None:
    source = np.arange(12, dtype=">i4").reshape(3, 4)[::2, ::-1]

    found = tensors.decode(tensors.encode({"a": source}), what="it")["a"]

    assert np.array_equal(found, source)


def test_a_frame_may_unfold_to_its_limit_and_not_to_a_byte_more() -> None:
    frame = tensors.pack(HEADER, {"a": np.zeros(1000)})
    size = len(zlib.decompress(frame))

    tensors.unpack(frame, ParametersHeader, max_bytes=size, what="it")
    with pytest.raises(MessageError, match=f"more than {size - 1} bytes"):
        tensors.unpack(frame, ParametersHeader, max_bytes=size - 1, what="it")


def test_a_bomb_is_refused_without_unfolding_it() -> None:
    stream = zlib.compressobj(9)
    frame = b"".join(stream.compress(bytes(1 << 20)) for _ in range(64)) + stream.flush()

    assert len(frame) < 100_000
    with pytest.raises(MessageError, match="more than 1048576 bytes"):
        tensors.unpack(frame, ParametersHeader, max_bytes=LIMIT, what="it")


def test_a_frame_that_is_cut_or_followed_by_more_is_refused() -> None:
    frame = tensors.pack(HEADER, {"a": np.arange(9)})
    for damaged in (frame[:-1], frame[: len(frame) // 2], frame + b"x", frame + frame):
        with pytest.raises(MessageError, match="cut off"):
            tensors.unpack(damaged, ParametersHeader, max_bytes=LIMIT, what="it")


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"header": "{}"}, {"header": "not JSON"}, {"header": '{"round":"R 1"}'},
     {"header": '{"round":"r1","v":2}'}, {"header": "[" * 5000},
     {"header": '{"round":"r1","new":' + "[" * 5000 + "]" * 5000 + "}"}],
)  # fmt: skip
def test_a_frame_without_a_good_header_is_refused(metadata: dict[str, str] | None) -> None:
    frame = zlib.compress(tensors.encode({"a": np.arange(9)}, metadata=metadata))

    with pytest.raises(MessageError, match=r"topic x has no valid header"):
        tensors.unpack(frame, ParametersHeader, max_bytes=LIMIT, what="topic x")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        safetensors(b"null"),
        safetensors(b'{"a":' + b"[" * 5000),
        safetensors({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"ab"),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"abcd"),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcdefgh"),
        safetensors({"a": {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]}}, b"abcd"),
        safetensors({"a": {"dtype": "U8", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        struct.pack("<Q", 1 << 60) + b"{}",
        safetensors(b" " * (1 << 20) + b"{}"),
    ],
)
def test_what_is_no_safetensors_file_is_named(raw: bytes) -> None:
    with pytest.raises(MessageError, match="golden file"):
        tensors.decode(raw, what="golden file")


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_frame_is_a_message_error_or_arrays(data: st.DataObject) -> None:
    raw = bytearray(tensors.encode({"a": np.arange(4)}, metadata={"header": '{"round":"r1"}'}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        frame = zlib.compress(bytes(raw))
        header, found = tensors.unpack(frame, ParametersHeader, max_bytes=LIMIT, what="it")
    except MessageError:
        return
    assert isinstance(header, msgspec.Struct)
    assert all(isinstance(array, np.ndarray) for array in found.values())


@given(st.binary(max_size=200))
def test_garbage_is_a_message_error(raw: bytes) -> None:
    with pytest.raises(MessageError):
        tensors.unpack(raw, ParametersHeader, max_bytes=LIMIT, what="it")
