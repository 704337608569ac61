"""A reader of deltas made from docs/delta.md alone, and what deltas are made of, held to others."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import zstandard
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit import delta, tensors
from edgekit.delta.layouts import tensors_of
from edgekit.tensors import Arrays
from tests import bundles

LENGTHS = {2: 1, 3: 2, 4: 4, 5: 8}


def read(old: Path, patch: bytes) -> bytes:
    """The new file, from the old one and a delta: slowly, by the page."""
    with zipfile.ZipFile(old) as archive:
        base = b"".join(archive.read(name) for name in archive.namelist())
    magic, version, flags, blocks, base_size = struct.unpack_from("<8sHHIQ", patch)
    assert (magic, version, flags, base_size) == (b"EDGEDLTA", 1, 0, len(base))
    position = 128
    made = b""
    for _ in range(blocks):
        makes, control, payload, packed = struct.unpack_from("<IIII", patch, position)
        position += 16 + packed
        raw = zstandard.ZstdDecompressor().decompress(patch[position - packed : position])
        assert len(raw) == payload
        made += block(base, raw[:control], raw[control:])
        assert len(made) >= makes
    assert position == len(patch)
    return made


def block(base: bytes, control: bytes, payload: bytes) -> bytes:
    operations = list(parsed(control))
    sections: dict[int, bytearray] = {}
    for kind in (1, *LENGTHS):
        size = sum(length for k, length, *_ in operations if k == kind)
        sections[kind], payload = bytearray(payload[:size]), payload[size:]
        if width := LENGTHS.get(kind):
            count = size // width
            planes = [sections[kind][i * count : (i + 1) * count] for i in range(width)]
            sections[kind] = bytearray(
                byte for element in zip(*planes, strict=True) for byte in element
            )
    size = sum(gaps for *_, gaps, _ in operations)
    all_gaps, all_values = bytearray(payload[:size]), bytearray(payload[size:])
    out = bytearray()
    for kind, length, old, gaps, values in operations:
        if kind == 1:
            out += taken(sections[1], length)
            continue
        piece = bytearray(base[old : old + length])
        if kind == 6:
            place = -1
            own = taken(all_values, values)
            for gap in taken(all_gaps, gaps):
                place += gap
                if gap < 255:
                    place += 1
                    piece[place] = (piece[place] + unfolded(own.pop(0))) % 256
        elif kind:
            width = LENGTHS[kind]
            steps = taken(sections[kind], length)
            for at in range(0, length, width):
                before, step = (
                    int.from_bytes(source[at : at + width], "little") for source in (piece, steps)
                )
                after = (before + unfolded(step)) % (1 << 8 * width)
                piece[at : at + width] = after.to_bytes(width, "little")
        out += piece
    return bytes(out)


def parsed(control: bytes) -> list[tuple[int, int, int, int, int]]:
    numbers: list[int] = []
    number = shift = 0
    for byte in control:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    operations = []
    expected = 0
    while numbers:
        word = numbers.pop(0)
        kind, length, old, gaps, values = word % 8, word // 8, 0, 0, 0
        if kind != 1:
            folded = numbers.pop(0)
            old = expected + (-(folded + 1) // 2 if folded % 2 else folded // 2)
            expected = old + length
        if kind == 6:
            gaps, values = numbers.pop(0), numbers.pop(0)
        operations.append((kind, length, old, gaps, values))
    return operations


def unfolded(number: int) -> int:
    return -(number + 1) // 2 if number % 2 else number // 2


def taken(section: bytearray, length: int) -> bytearray:
    piece = section[:length]
    del section[:length]
    return piece


def test_a_reader_made_from_the_page_makes_the_same_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = random.normal(0, 30, 20_000).astype(np.int8)
    few, all_ = (random.random(20_000) < share for share in (0.01, 0.5))
    arrays: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "few": (weights, weights + few.astype(np.int8)),
        "all": (weights[::-1].copy(), weights[::-1] - all_.astype(np.int8)),
        "floats": (few.astype(np.float32) + 1, few.astype(np.float32) + np.float32(1.001)),
        "halves": (all_.astype(np.float16) + 1, all_.astype(np.float16) + np.float16(1.01)),
        "doubles": (random.random(99), random.random(99)),
    }
    old, new = (
        bundles.write(
            tmp_path / str(i),
            version=f"1.{i}.0",
            extra={"w.safetensors": tensors.encode({n: pair[i] for n, pair in arrays.items()})},
        )
        for i in range(2)
    )

    delta.make(old, new, tmp_path / "patch")

    assert read(old, (tmp_path / "patch").read_bytes()) == new.read_bytes()


def test_tensors_of_onnx_are_found_where_they_lie() -> None:
    raw = bundles.mlp((16, 64, 4))

    found = tensors_of("artifacts/m.onnx", memoryview(raw))

    model = onnx.load_from_string(raw)
    assert found.keys() == {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        place = found[tensor.name]
        assert place.width == 4
        assert (
            raw[place.offset : place.offset + place.size] == numpy_helper.to_array(tensor).tobytes()
        )


def test_tensors_of_safetensors_are_found_where_they_lie() -> None:
    arrays: Arrays = {"b": np.arange(9, dtype=np.float16), "a": np.arange(5, dtype=np.int64)}
    raw = tensors.encode(arrays)

    found = tensors_of("golden/x.safetensors", memoryview(raw))

    assert {name: place.width for name, place in found.items()} == {"a": 8, "b": 2}
    for name, place in found.items():
        assert raw[place.offset : place.offset + place.size] == arrays[name].tobytes()


def test_a_file_that_is_not_what_its_name_says_has_no_tensors() -> None:
    for raw in (b"", b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x0f", b"\x08\0\0\0\0\0\0\0nothing!"):
        assert tensors_of("a.onnx", memoryview(raw)) == {}
        assert tensors_of("a.safetensors", memoryview(raw)) == {}
        assert tensors_of("a.tflite", memoryview(raw)) == {}
