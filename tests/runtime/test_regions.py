"""Regions of shared memory: which files may be one, and what happens when they change in use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import RequestError
from edgekit.manifest import TensorSpec
from edgekit_runtime.serving import v2
from edgekit_runtime.serving.form import Stretch
from edgekit_runtime.serving.shm import (
    FOLDER,
    ROOT,
    RegionLimits,
    Regions,
    RegionTable,
    Registration,
)
from tests import bundles
from tests.runtime.shared_files import File, descriptors, shared_file

ME = os.getuid()
SAMPLES = bundles.samples(1)
X = TensorSpec(name="x", datatype="FP32", shape=(-1, bundles.FEATURES))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, bundles.CLASSES))
IN_BYTES = bundles.FEATURES * 4


@pytest.fixture
def file() -> Iterator[File]:
    with shared_file() as made:
        yield made


@pytest.fixture
def regions() -> Iterator[Regions]:
    table = RegionTable()
    yield table.of(ME)
    table.close()


def read(regions: Regions, place: Stretch) -> bytes:
    into = bytearray(place.size_bytes)
    regions.read(place, memoryview(into), what="input 'x'")
    return bytes(into)


# What may be registered.


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_region_is_a_part_of_a_file(regions: Regions, file: File, slash: str) -> None:
    regions.register("r", Registration(slash + file.key, byte_size=100, offset=50))

    assert read(regions, Stretch("r", 10, 5)) == bytes(range(60, 65))
    regions.write(Stretch("r", 99, 1), b"!", what="output 'y'")
    assert file.read()[149:150] == b"!"


@pytest.mark.parametrize(
    "key",
    ["", "/", "a/b", "//a", "../etc/passwd", "/../etc/passwd", ".hidden", ".", "a\0b", "a\nb",
     "a" * 256],
)  # fmt: skip
def test_a_key_that_is_no_name_is_refused(regions: Regions, key: str) -> None:
    with pytest.raises(RequestError, match="not the name of a file"):
        regions.register("r", Registration(key, byte_size=1))


@given(st.text("./a\0\ud800é", max_size=300))
def test_no_key_leads_out_of_the_folder(key: str) -> None:
    table = RegionTable()
    try:
        table.of(ME).register("r", Registration(key, byte_size=1))
    except RequestError:
        return
    assert (FOLDER / key.removeprefix("/")).resolve().parent == FOLDER
    table.close()


def test_what_is_no_regular_file_of_the_folder_is_refused(regions: Regions, file: File) -> None:
    other = FOLDER / f"{file.key}-other"
    before = descriptors()
    makers: list[Callable[[], None]] = [
        lambda: other.symlink_to(file.path),
        lambda: os.mkfifo(other),
        lambda: other.mkdir(),
    ]
    for make in makers:
        make()
        try:
            with pytest.raises(RequestError, match=file.key):
                regions.register("r", Registration(other.name, byte_size=1))
        finally:
            (other.rmdir if other.is_dir() else other.unlink)()
    with pytest.raises(RequestError, match="No such file"):
        regions.register("r", Registration(other.name, byte_size=1))
    assert descriptors() == before


@pytest.mark.skipif(ME != ROOT, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(file: File) -> None:
    table = RegionTable()
    os.chown(file.path, 4711, 4711)

    with pytest.raises(RequestError, match="belongs to user 4711, not to you, 4712"):
        table.of(4712).register("r", Registration(file.key, byte_size=1))
    table.of(4711).register("r", Registration(file.key, byte_size=1))
    assert table.of(4712).status() == []
    with pytest.raises(RequestError, match="no shared memory is registered as region 'r'"):
        read(table.of(4712), Stretch("r", 0, 1))
    table.close()


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [(0, 257, "256 bytes"), (256, 1, "256 bytes"), (2**63, 2**63, "256 bytes"), (-1, 4, "offset"),
     (0, 0, "byte_size"), (0, -1, "byte_size")],
)  # fmt: skip
def test_a_region_outside_its_file_is_refused(
    regions: Regions, file: File, offset: int, size: int, message: str
) -> None:
    before = descriptors()
    with pytest.raises(RequestError, match=message):
        regions.register("r", Registration(file.key, byte_size=size, offset=offset))
    assert descriptors() == before


def test_regions_are_bounded_in_number_over_all_users(file: File) -> None:
    table = RegionTable(limits=RegionLimits(regions=2))
    mine = table.of(ME)
    before = descriptors()
    mine.register("a", Registration(file.key, byte_size=1))
    table.of(ROOT).register("b", Registration(file.key, byte_size=1))

    with pytest.raises(RequestError, match="2 regions"):
        mine.register("c", Registration(file.key, byte_size=1))
    mine.unregister("a")
    mine.register("c", Registration(file.key, byte_size=1))
    with pytest.raises(RequestError, match="registered already"):
        mine.register("c", Registration(file.key, byte_size=1))
    table.close()
    assert descriptors() == before
    assert file.path.exists()


# What happens in use.


@given(
    offset=st.integers(-4, 2**66) | st.integers(0, 300),
    size=st.integers(0, 300) | st.integers(0, 2**66),
)
def test_nothing_outside_a_region_is_read_or_written(offset: int, size: int) -> None:
    table = RegionTable()
    regions = table.of(ME)
    with shared_file() as file:
        regions.register("r", Registration(file.key, byte_size=128, offset=64))
        place = Stretch("r", offset, size)
        if offset >= 0 and offset + size <= 128:
            assert read(regions, place) == file.read()[64 + offset :][:size]
            regions.write(place, b"\xff" * size, what="output 'y'")
        else:
            with pytest.raises(RequestError, match="not within"):
                regions.read(place, memoryview(bytearray(8)), what="input 'x'")
            with pytest.raises(RequestError, match="not within"):
                regions.write(place, b"\xff" * 8, what="output 'y'")
        assert file.read()[:64] == bytes(range(64))
        assert file.read()[192:] == bytes(range(192, 256))
    table.close()


def test_a_file_that_shrinks_in_use_is_an_error_and_nothing_worse(
    regions: Regions, file: File
) -> None:
    regions.register("r", Registration(file.key, byte_size=256))
    os.truncate(file.path, 100)

    assert read(regions, Stretch("r", 0, 100)) == bytes(range(100))
    with pytest.raises(RequestError, match=r"input 'x'.*made smaller"):
        read(regions, Stretch("r", 90, 20))
    with pytest.raises(RequestError, match=r"output 'y'.*made smaller"):
        regions.write(Stretch("r", 90, 20), b"1" * 20, what="output 'y'")
    assert len(file.read()) == 100


def test_an_output_larger_than_its_place_is_refused(regions: Regions, file: File) -> None:
    regions.register("r", Registration(file.key, byte_size=256))

    with pytest.raises(RequestError, match="output 'y' has 20 bytes, the request has 10"):
        regions.write(Stretch("r", 0, 10), b"1" * 20, what="output 'y'")
    assert file.read() == bytes(range(256))


def test_a_client_may_remove_its_file_before_it_is_done(regions: Regions, file: File) -> None:
    regions.register("r", Registration(file.key, byte_size=256))
    file.path.unlink()

    assert read(regions, Stretch("r", 0, 4)) == bytes(range(4))


def test_shared_tensors_are_copied_into_memory_of_the_engine(regions: Regions, file: File) -> None:
    file.path.write_bytes(SAMPLES[0].tobytes().ljust(256, b"\0"))
    regions.register("r", Registration(file.key, byte_size=256))
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, bundles.FEATURES],
                     "parameters": {"shared_memory_region": "r",
                                    "shared_memory_byte_size": IN_BYTES}}]}
    ).encode()  # fmt: skip
    form = v2.prepare(body, inputs=[X], outputs=[Y]).form
    arena = np.zeros(IN_BYTES, dtype=np.uint8)

    array = v2.read_arrays(
        form, b"", offset=0, size_bytes=0, regions=regions, allocate=lambda _: arena.data
    )["x"]

    np.testing.assert_array_equal(array, SAMPLES[:1])
    assert np.shares_memory(array, arena)
    with pytest.raises(RequestError, match="programs on this machine"):
        v2.read_arrays(form, b"", offset=0, size_bytes=0)


def test_a_request_may_not_have_more_copied_than_the_limit(file: File) -> None:
    table = RegionTable(limits=RegionLimits(request_bytes=100))

    table.of(ME).check_total(100)
    with pytest.raises(RequestError, match="101 bytes in shared memory, at most 100"):
        table.of(ME).check_total(101)
