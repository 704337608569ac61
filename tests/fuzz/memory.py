"""Targets: programs that share memory, by a doorbell or by regions of `/dev/shm`."""

from __future__ import annotations

import atexit
import functools
import json
import math
import os
import shutil
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from edgekit.errors import RequestError, ServingError
from edgekit_runtime import doorbell
from edgekit_runtime.doorbell import Hello, Layout
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.serving.form import Stretch
from edgekit_runtime.serving.mapping import ALIGNMENT, lay_out
from edgekit_runtime.serving.shm import MAX_NAME_CHARS, Regions, RegionTable, Registration
from tests.fuzz.target import INPUTS, MOST_BYTES, OUTPUTS, Target, attempt


def ring(raw: bytes) -> None:
    """A first packet is laid out without overlap, or refused; answers are read or refused."""
    attempt(lambda: doorbell.read_refusal(raw), ServingError)
    attempt(lambda: doorbell.read_layout(raw), ServingError)
    fixed = [spec for spec in INPUTS if spec.datatype != "BYTES"]
    hello = attempt(lambda: doorbell.read_hello(raw), RequestError)
    if not isinstance(hello, Hello):
        return
    layout = attempt(lambda: lay_out(hello, fixed, OUTPUTS[:1]), RequestError)
    if isinstance(layout, Layout):
        _check(layout, hello)


def _check(layout: Layout, hello: Hello) -> None:
    end = 0
    for place in (*layout.inputs, *layout.outputs):
        assert place.offset % ALIGNMENT == 0
        assert place.offset >= end, "tensors overlap"
        assert place.size_bytes == math.prod(place.shape) * DTYPES[place.datatype].itemsize
        end = place.offset + place.size_bytes
    assert end <= layout.slot_bytes
    assert layout.size_bytes == layout.slot_bytes * hello.slots
    if layout.size_bytes <= MOST_BYTES:
        memory = bytearray(layout.size_bytes)
        for slot in range(layout.slots):
            for place in (*layout.inputs, *layout.outputs):
                place.view(memory, slot * layout.slot_bytes)
    assert doorbell.read_layout(msgspec.json.encode(layout)) == layout


HELLOS = [
    b'{"doorbell":1,"model":"m","rows":2,"slots":3,"shapes":{"i":[2,2]}}',
    b'{"doorbell":1,"model":"m","version":"1","variant":"v","shapes":{"i":[1,1],"y":[9,4]}}',
    b'{"doorbell":1,"model":"m","rows":1048576,"slots":16,"shapes":{"i":[1099511627776,9]}}',
    b'{"doorbell":2,"model":"m"}',
    b'{"kind":"Overloaded","message":"full","retry_after_s":1.5}',
    b'{"inputs":[],"outputs":[],"slot_bytes":64,"slots":1}',
]


WORDS = [
    b'"doorbell":1', b'"model":"m"', b'"rows":', b'"slots":', b'"shapes":{', b'"x":[', b'"y":[',
    b'"i":[', b'"version":null', b'"key":"file"', b'"offset":', b'"byte_size":', b"-1", b"64",
    b"1048576", b"1099511627776", b"18446744073709551616", b"../", b"\\u0000",
]  # fmt: skip

_FILE_BYTES = 64


@functools.cache
def _folder() -> Path:
    """A folder with one file that may be registered, and a link to one beside it."""
    place = Path(tempfile.mkdtemp(prefix="edgekit-fuzz-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    folder = place / "shm"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(_FILE_BYTES))
    (place / "secret").write_bytes(bytes(_FILE_BYTES))
    (folder / "link").symlink_to("../secret")
    return folder


def region(raw: bytes) -> None:
    """Nothing but the file is opened, and nothing outside a region is read or written.

    Two numbers of eight bytes, an offset and a size, stand before the JSON of a registration.
    """
    offset, size = struct.unpack("<qq", raw[:16].ljust(16, b"\0"))
    try:
        wanted = msgspec.json.decode(raw[16:], type=Registration)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    regions = Regions(RegionTable(folder=_folder()), os.getuid())
    if attempt(lambda: regions.register("r", wanted), RequestError) is not None:
        assert not len(regions)
        return
    try:
        assert wanted.key.removeprefix("/") == "file"
        assert 0 <= wanted.offset < wanted.offset + wanted.byte_size <= _FILE_BYTES
        place = Stretch("r", offset, size)
        with suppress(RequestError):
            regions.write(place, b"edgekit", what="y")
            assert 0 <= offset <= offset + 7 <= offset + size <= wanted.byte_size
        if 0 <= size <= _FILE_BYTES:
            with suppress(RequestError):
                regions.read(place, memoryview(bytearray(size)), what="x")
                assert 0 <= offset <= offset + size <= wanted.byte_size
    finally:
        regions.unregister()


def _registrations() -> list[bytes]:
    keys = ["file", "/file", "../secret", "link", "/", ".", "a" * (MAX_NAME_CHARS + 1), "file\0"]
    trees = [{"key": key, "byte_size": 64} for key in keys]
    trees += [{"key": "file", "offset": o, "byte_size": s} for o, s in ((8, 8), (60, 8), (-1, 2))]
    places = [struct.pack("<qq", 0, 8), struct.pack("<qq", -1, 2**62)]
    return [place + json.dumps(tree).encode() for tree in trees for place in places]


TARGETS = {"ring": Target(ring, HELLOS, WORDS), "region": Target(region, _registrations(), WORDS)}
