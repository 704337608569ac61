"""The strict zip form: what is written, and everything that is refused."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import container
from edgekit.errors import BundleError, IntegrityError, StorageError
from tests.contract import samples, stranger
from tests.strategies import entry_names

FILES: dict[str, bytes] = {"manifest.json": b"{}", "a/one": b"1" * 5000, "b": b"", "c.txt": b"see"}
LOCAL, CENTRAL = "<4sHHHHHIIIHH", "<4sHHHHHHIIIHHHHHII"


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    container.write(file, files)
    return file.getvalue()


def read(raw: bytes) -> dict[str, container.Entry]:
    with mmap.mmap(-1, max(len(raw), 1)) as view:
        view[: len(raw)] = raw
        return container.read(view)


def refused(raw: bytes, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        read(raw)


def directory_of(raw: bytes) -> int:
    return int(struct.unpack_from("<I", raw, len(raw) - 6)[0])


def poke(raw: bytes, position: int, form: str, value: int) -> bytes:
    changed = bytearray(raw)
    struct.pack_into(form, changed, position, value)
    return bytes(changed)


def loose(files: list[tuple[str, bytes]], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip as ordinary tools make it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = method
            archive.writestr(info, data)
    return file.getvalue()


@settings(max_examples=60)
@given(st.dictionaries(entry_names, st.binary(max_size=300), min_size=1, max_size=6))
def test_what_is_written_is_read_back_by_us_and_by_zipfile(files: dict[str, bytes]) -> None:
    try:
        container.check_names(files)
    except BundleError:
        return  # one name is the folder of another
    raw = packed(files)

    entries = read(raw)

    assert {name: raw[e.offset : e.offset + e.size] for name, e in entries.items()} == files
    assert list(entries) == container.order(files)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_every_entry_begins_at_a_multiple_of_4096() -> None:
    assert all(entry.offset % 4096 == 0 for entry in read(packed(FILES)).values())


def test_permissions_and_dates_are_fixed() -> None:
    with zipfile.ZipFile(io.BytesIO(packed(FILES))) as archive:
        for info in archive.infolist():
            assert info.external_attr >> 16 == 0o100644
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.compress_type == zipfile.ZIP_STORED


def test_an_entry_may_come_from_a_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(FILES["a/one"])

    container.save(tmp_path / "x.edge", {**FILES, "a/one": source})

    assert (tmp_path / "x.edge").read_bytes() == packed(FILES)


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing cannot be read"):
        container.save(tmp_path / "x.edge", {"manifest.json": tmp_path / "missing"})

    assert list(tmp_path.iterdir()) == []


class Growing(io.BytesIO):
    """A target that changes the source while the header is written."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.source = source

    def write(self, data: object) -> int:
        self.source.write_bytes(b"other")
        return super().write(data)  # type: ignore[arg-type]


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"first")

    with pytest.raises(BundleError, match="changed while"):
        container.write(Growing(source), {"manifest.json": source})


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "a/", ".", "..", "a/.", "./a", "", "a b", "a\\b",
     "ä", "x" * 201, "a\n", "a\0b", "C:x"],
)  # fmt: skip
def test_a_name_that_leaves_the_bundle_is_neither_written_nor_read(name: str) -> None:
    with pytest.raises(BundleError, match="name"):
        packed({name: b""})
    placeholder = b"q" * max(len(name.encode()), 1)
    raw = stranger.container({"manifest.json": b"{}", placeholder.decode(): b""})
    refused(raw.replace(placeholder, name.encode() or b"/"), "not allowed")


def test_a_name_that_is_the_folder_of_another_is_refused() -> None:
    with pytest.raises(BundleError, match="folder of"):
        packed({"a": b"", "a/b/c": b""})
    refused(packed({"aXb": b"", "a": b""}).replace(b"aXb", b"a/b"), "folder of")


def test_a_name_that_is_there_twice_is_refused() -> None:
    refused(packed({"aa": b"", "ab": b""}).replace(b"ab", b"aa"), "twice")


def test_entries_out_of_order_are_refused() -> None:
    refused(packed({"aa": b"", "ab": b""}).replace(b"aa", b"ac"), "by name")


def test_more_than_4096_entries_are_neither_written_nor_read() -> None:
    with pytest.raises(BundleError, match="at most 4096"):
        packed({f"e{i}": b"" for i in range(4097)})
    raw = packed(FILES)
    count = poke(poke(raw, len(raw) - 14, "<H", 5000), len(raw) - 12, "<H", 5000)
    refused(count, "does not fit")


def test_an_ordinary_zip_is_refused_for_its_alignment() -> None:
    refused(loose([("manifest.json", b"{}")]), "aligned")


def test_a_deflated_entry_is_refused_before_anything_unfolds() -> None:
    bomb = loose([("manifest.json", b"0" * 10_000_000)], method=zipfile.ZIP_DEFLATED)

    assert len(bomb) < 20_000
    refused(bomb, "must be stored")


def test_a_huge_declared_size_is_refused() -> None:
    raw = packed({"manifest.json": b"{}"})
    start = directory_of(raw)
    for position in (start + 20, start + 24):
        raw = poke(raw, position, "<I", 0xFFFFFF00)
    refused(poke(poke(raw, 18, "<I", 0xFFFFFF00), 22, "<I", 0xFFFFFF00), "runs into the directory")


@pytest.mark.parametrize("raw", [b"", b"PK", b"\0" * 22, b"not a bundle at all" * 20])
def test_a_foreign_file_is_refused(raw: bytes) -> None:
    refused(raw, "not a bundle")


def test_a_container_cut_at_any_length_is_refused() -> None:
    raw = packed(FILES)
    start = directory_of(raw)
    near = {*range(60), *range(start - 40, len(raw)), *range(0, len(raw), 997)}
    for length in sorted(near - {len(raw)}):
        with pytest.raises(BundleError):
            read(raw[:length])


def test_bytes_before_between_and_behind_are_refused() -> None:
    raw = packed(FILES)
    start = directory_of(raw)
    refused(raw + b"\0", "not a bundle")
    refused(b"\0" + raw, "does not fit")
    moved = raw[:start] + b"\0" + raw[start:]
    refused(poke(moved, len(moved) - 6, "<I", start + 1), "belong to no entry")
    longer = raw[:-22] + b"\0" + raw[-22:]
    size = len(longer) - 22 - start
    refused(poke(longer, len(longer) - 10, "<I", size), "belong to no entry")


def test_a_gap_and_an_overlap_between_entries_are_refused() -> None:
    raw = packed({"a": b"", "b": b"x"})
    second = directory_of(raw) + 46 + 1
    header = struct.unpack_from("<I", raw, second + 42)[0]
    refused(poke(raw, second + 42, "<I", header + 4096), "gap or an overlap")
    refused(poke(raw, second + 42, "<I", 0), "gap or an overlap")


@pytest.mark.parametrize(
    ("offset", "form", "value", "match"),
    [
        (4, "<H", 0x0014, "Unix file"),
        (6, "<H", 63, "needs version"),
        (8, "<H", 1, "must be stored"),
        (8, "<H", 8, "must be stored"),
        (8, "<H", 0x800, "must be stored"),
        (10, "<H", 8, "must be stored"),
        (12, "<H", 1, "must be stored"),
        (14, "<H", 0x22, "must be stored"),
        (16, "<I", 1, "differs from the directory"),
        (20, "<I", 1, "two sizes"),
        (28, "<H", 0xFFFF, "damaged"),
        (30, "<H", 2, "cut off"),
        (32, "<H", 4, "must be stored"),
        (34, "<H", 1, "must be stored"),
        (36, "<H", 1, "must be stored"),
        (38, "<I", 0o120777 << 16, "permissions"),
        (38, "<I", 0o040755 << 16, "permissions"),
        (38, "<I", (0o100644 << 16) | 16, "permissions"),
    ],
)
def test_a_directory_field_of_another_value_is_refused(
    offset: int, form: str, value: int, match: str
) -> None:
    raw = packed({"manifest.json": b"{}", "b": b"x"})
    refused(poke(raw, directory_of(raw) + offset, form, value), match)


@pytest.mark.parametrize(
    ("offset", "form", "value", "match"),
    [
        (0, "<I", 0x08074B50, "differs"),
        (4, "<H", 20, "another version"),
        (6, "<H", 8, "differs"),
        (8, "<H", 8, "differs"),
        (14, "<I", 7, "differs"),
        (18, "<I", 7, "differs"),
        (22, "<I", 7, "differs"),
        (26, "<H", 5, "extra field|another name"),
        (28, "<H", 3, "cut off"),
        (30, "<B", 0x4D, "another name"),
        (43, "<H", 0x5455, "not allowed"),
        (47, "<H", 512, "padding"),
        (60, "<B", 1, "padding"),
    ],
)
def test_a_local_header_of_another_value_is_refused(
    offset: int, form: str, value: int, match: str
) -> None:
    refused(poke(packed({"manifest.json": b"{}", "b": b"x"}), offset, form, value), match)


def test_entries_that_differ_in_their_maker_are_refused() -> None:
    raw = packed({"manifest.json": b"{}", "b": b"x"})
    start = directory_of(raw)
    refused(poke(raw, start + 4, "<H", 0x0314), "who made them")
    refused(poke(raw, start + 38, "<I", 0o644 << 16), "who made them")


def test_a_directory_that_is_cut_off_or_points_into_itself_is_refused() -> None:
    raw = packed({"manifest.json": b"{}"})
    start = directory_of(raw)
    two = poke(poke(raw, len(raw) - 14, "<H", 2), len(raw) - 12, "<H", 2)
    refused(two, "directory is cut off")
    empty = raw[:start] + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0, 0, 0, start, 0)
    refused(empty, "belong to no entry")
    short = packed({"m": b""})[4096:]
    refused(poke(short, len(short) - 6, "<I", 0), "runs into the directory")
    near = poke(raw, len(raw) - 6, "<I", 0xFFFFFFFF)
    refused(near, "zip64 end record differs")
    refused(poke(raw[-22:], 16, "<I", 0xFFFFFFFF), "zip64 end record is missing")


def test_a_comment_and_a_second_volume_are_refused() -> None:
    raw = packed(FILES)
    refused(poke(raw, len(raw) - 2, "<H", 1), "no comment")
    refused(poke(raw, len(raw) - 18, "<H", 1), "one file")
    refused(poke(raw, len(raw) - 14, "<H", 1), "one file")


def test_a_padding_that_the_directory_tells_otherwise_is_refused() -> None:
    raw = packed({"manifest.json": b"{}"})
    start, size = directory_of(raw), 46 + 13 + 6
    extra = struct.pack("<HHH", 0xD935, 2, 4096)
    grown = poke(raw[:-22], start + 30, "<H", 6) + extra + raw[-22:]
    refused(poke(grown, len(grown) - 10, "<I", size), "padding of")


def test_a_padding_that_the_directory_repeats_is_accepted() -> None:
    raw = packed({"manifest.json": b"{}"})
    start = directory_of(raw)
    extra = raw[43 : raw.index(b"{}")]
    grown = poke(raw[:-22], start + 30, "<H", len(extra)) + extra + raw[-22:]

    assert list(read(poke(grown, len(grown) - 10, "<I", 59 + len(extra)))) == ["manifest.json"]


def test_a_checksum_that_does_not_fit_is_noticed() -> None:
    raw = packed({"manifest.json": b"{}"})
    at = raw.index(b"{}")
    with mmap.mmap(-1, len(raw)) as view:
        view[:] = samples.flip(raw, at)
        (entry,) = container.read(view).values()
        with pytest.raises(IntegrityError, match="CRC-32"):
            container.check_crc(view, entry)


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for position, data in parts.items():
            file.seek(position)
            file.write(data)


def far(path: Path, *, large: int, second: bytes = b"see") -> bytes:
    """A sparse container whose first entry holds `large` zeros, so the second lies far off.

    Made by hand, field by field. Returns the central directory.
    """
    wide = large >= 0xFFFFFFFF
    crc = 0x12345678
    zip64 = struct.pack("<HHQQ", 1, 16, large, large) if wide else b""
    size32 = 0xFFFFFFFF if wide else large

    def local(start: int, name: bytes, crc: int, size32: int, zip64: bytes, version: int) -> bytes:
        zeros = -(start + 30 + len(name) + len(zip64) + 6) % 4096
        extra = zip64 + struct.pack("<HHH", 0xD935, 2 + zeros, 4096) + bytes(zeros)
        head = (b"PK\x03\x04", version, 0, 0, 0, 0x21, crc, size32, size32, len(name), len(extra))
        return struct.pack(LOCAL, *head) + name + extra

    first = local(0, b"a", crc, size32, zip64, 45 if wide else 10)
    offset = len(first) + large
    last = local(offset, b"b", zlib.crc32(second), len(second), b"", 45)
    last += second
    start = offset + len(last)
    fields = (b"PK\x01\x02", 0x031E, 45 if wide else 10, 0, 0, 0, 0x21, crc, size32, size32, 1)
    directory = struct.pack(CENTRAL, *fields, len(zip64), 0, 0, 0, 0o100644 << 16, 0) + b"a" + zip64
    there = struct.pack("<HHQ", 1, 8, offset)
    fields = (b"PK\x01\x02", 0x031E, 45, 0, 0, 0, 0x21, zlib.crc32(second), len(second),
              len(second), 1)  # fmt: skip
    directory += struct.pack(CENTRAL, *fields, 12, 0, 0, 0, 0o100644 << 16, 0xFFFFFFFF)
    directory += b"b" + there
    end = struct.pack(
        "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, 2, 2, len(directory), start
    )
    end += struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1)
    end += struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), 0xFFFFFFFF, 0)
    total = start + len(directory) + len(end)
    sparse(path, total, {0: first, offset: last, start: directory + end})
    return directory


@pytest.mark.parametrize("large", [(4 << 30) - 4096, 0xFFFFFFFF, 4 << 30])
def test_sizes_and_positions_of_4_gib_need_zip64_and_are_read(tmp_path: Path, large: int) -> None:
    path = tmp_path / "far.edge"
    directory = far(path, large=large)

    with container.open_map(path) as view:
        entries = container.read(view)

    assert entries["a"].size == large
    assert entries["b"].offset == 4096 + large + (-large % 4096) + 4096
    assert (
        b"".join(
            container._central_header(
                e.name,
                start=0 if e.name == "a" else 4096 + large,
                size=e.size,
                crc=e.crc,
            )
            for e in entries.values()
        )
        == directory
    )


def test_a_zip64_record_that_differs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "far.edge"
    far(path, large=(4 << 30) - 4096)
    whole = path.stat().st_size
    for back, form, value in [(98 - 4, "<Q", 45), (98 - 32, "<Q", 3), (98 - 48, "<Q", 1),
                              (42 - 8, "<Q", 0), (42 - 16, "<I", 2)]:  # fmt: skip
        with path.open("r+b") as file:
            file.seek(whole - back)
            kept = file.read(struct.calcsize(form))
            file.seek(whole - back)
            file.write(struct.pack(form, value))
        with container.open_map(path) as view, pytest.raises(BundleError):
            container.read(view)
        with path.open("r+b") as file:
            file.seek(whole - back)
            file.write(kept)
    with container.open_map(path) as view:
        assert len(container.read(view)) == 2


def test_an_entry_above_4_gib_and_a_file_above_8_gib_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "far.edge"
    far(path, large=(4 << 30) + 1)
    with container.open_map(path) as view, pytest.raises(BundleError, match="an entry at most"):
        container.read(view)
    sparse(path, (8 << 30) + 1, {})
    with container.open_map(path) as view, pytest.raises(BundleError, match="a bundle at most"):
        container.read(view)


def test_zip64_where_nothing_needs_it_is_refused() -> None:
    raw = packed({"manifest.json": b"{}"})
    start = directory_of(raw)
    extra = struct.pack("<HHQQ", 1, 16, 2, 2)
    grown = poke(raw[:-22], start + 30, "<H", 20) + extra + raw[-22:]
    grown = poke(grown, len(grown) - 10, "<I", 59 + 20)
    refused(grown, "does not need")
    for position in (start + 20, start + 24):
        grown = poke(grown, position, "<I", 0xFFFFFFFF)
    refused(grown, "fits none")


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_container_is_read_as_a_bundle_error_or_not_at_all(data: st.DataObject) -> None:
    raw = bytearray(packed(FILES))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    for entry in _try(bytes(raw)).values():
        assert 0 <= entry.offset <= entry.offset + entry.size <= len(raw)


def _try(raw: bytes) -> dict[str, container.Entry]:
    try:
        return read(raw)
    except BundleError:
        return {}


def test_a_strangers_container_has_the_same_bytes() -> None:
    assert stranger.container(FILES) == packed(FILES)
