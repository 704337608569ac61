"""Opening, verifying, unpacking and writing bundles, whole and damaged ones."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import bundle, container
from edgekit.bundle import GOLDEN_INPUTS, MANIFEST, SIGNATURE, Bundle
from edgekit.errors import (
    BundleError,
    IntegrityError,
    ManifestError,
    StorageError,
    UntrustedError,
)
from edgekit.manifest import Golden
from edgekit.signing import SigningKey
from tests.contract import samples, stranger


def repacked(edge: Path, changes: dict[str, bytes | None]) -> Path:
    """The bundle with entries replaced, added or (`None`) left out, as a sound container."""
    entries = {**stranger.read(edge.read_bytes()), **changes}
    kept = {name: data for name, data in entries.items() if data is not None}
    edge.write_bytes(stranger.container(kept))
    return edge


def test_a_bundle_opens_and_tells_what_it_is(edge: Path, key: SigningKey) -> None:
    with Bundle.open(edge) as opened:
        assert opened.verify([SigningKey.generate().public, key.public]) is key.public
        assert opened.manifest.name == "tiny"
        assert opened.digest == f"sha256:{hashlib.sha256(opened.read(MANIFEST)).hexdigest()}"
        assert opened.names()[0] == MANIFEST
        assert set(opened.names()) == {MANIFEST, SIGNATURE, *samples.ENTRIES, *samples.REPORTS}
        assert np.array_equal(opened.tensors(GOLDEN_INPUTS)["x"], np.ones((1, 2), np.float32))


def test_the_same_content_and_key_give_the_same_bytes(tmp_path: Path, key: SigningKey) -> None:
    one = samples.write(tmp_path / "one.edge", key)
    two = samples.write(tmp_path / "two.edge", key)

    assert one.read_bytes() == two.read_bytes()


def test_the_digest_ignores_reports_alone(tmp_path: Path, key: SigningKey) -> None:
    def digest(reports: dict[str, bytes], entries: dict[str, bytes | Path]) -> str:
        path = tmp_path / "x.edge"
        return bundle.write(path, samples.MANIFEST, entries=entries, reports=reports, key=key)

    other = {**samples.ENTRIES, "sbom.cdx.json": b"{}"}
    assert digest({}, samples.ENTRIES) == digest(samples.REPORTS, samples.ENTRIES)
    assert digest({}, samples.ENTRIES) != digest({}, other)


def test_a_bundle_with_any_one_byte_changed_is_refused(edge: Path, key: SigningKey) -> None:
    """Every position outside of the zeros that align entries, and one in 61 of those."""
    whole = edge.read_bytes()
    aligning = bytes(64)
    positions = [
        position
        for position in range(len(whole))
        if whole[position - 32 : position + 32] != aligning or position % 61 == 0
    ]
    accepted = []
    for position in positions:
        edge.write_bytes(samples.flip(whole, position, 1 + position * 7 % 255))
        try:
            with Bundle.open(edge) as opened:
                opened.verify([key.public])
            accepted.append(position)
        except BundleError:
            pass
    assert accepted == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bundle_with_one_changed_bit_is_refused(
    edge: Path, key: SigningKey, data: st.DataObject
) -> None:
    whole = samples.write(edge, key).read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    edge.write_bytes(samples.flip(whole, position, 1 << data.draw(st.integers(0, 7))))

    with pytest.raises(BundleError, match=edge.name), Bundle.open(edge) as opened:
        opened.verify([key.public])


def test_another_key_is_refused_with_what_to_do(edge: Path) -> None:
    with Bundle.open(edge) as opened, pytest.raises(UntrustedError) as caught:
        opened.verify([SigningKey.generate().public])

    assert caught.value.hint is not None
    assert "--trust" in caught.value.hint


def test_no_key_at_all_is_refused(edge: Path) -> None:
    with Bundle.open(edge) as opened, pytest.raises(UntrustedError, match="0 trusted keys"):
        opened.verify([])


def test_an_unsigned_bundle_opens_and_is_not_trusted(edge: Path, key: SigningKey) -> None:
    with Bundle.open(repacked(edge, {SIGNATURE: None})) as opened:
        assert opened.signature is None
        with pytest.raises(UntrustedError, match="not signed"):
            opened.verify([key.public])


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({MANIFEST: None}, BundleError, "no manifest.json"),
        ({samples.ARTIFACT: None}, IntegrityError, "in the manifest, but not in the bundle"),
        ({samples.ARTIFACT: b"other"}, IntegrityError, r"float.onnx: sha256 or size"),
        ({"extra.bin": b""}, IntegrityError, "extra.bin is in the bundle, but not in the manifest"),
        ({"reports/more.txt": b""}, IntegrityError, "more.txt is not covered by the signature"),
        ({"reports/empty.txt": None}, IntegrityError, "empty.txt is signed, but not there"),
        ({"reports/empty.txt": b"!"}, IntegrityError, "empty.txt: sha256 differs from what was"),
        ({SIGNATURE: b"{}"}, IntegrityError, "not a signature of a bundle"),
        ({MANIFEST: b"[" * 100_000}, ManifestError, "nested deeper than 64"),
        ({MANIFEST: b" " * ((4 << 20) + 1)}, BundleError, "at most 4194304"),
        ({SIGNATURE: b" " * ((16 << 20) + 1)}, BundleError, "at most 16777216"),
    ],
)
def test_an_entry_that_differs_is_named(
    edge: Path, changes: dict[str, bytes | None], error: type[BundleError], match: str
) -> None:
    with pytest.raises(error, match=match):
        Bundle.open(repacked(edge, changes))


def test_a_file_that_is_missing_empty_or_foreign_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.edge: cannot be opened: No such file"):
        Bundle.open(tmp_path / "none.edge")
    (tmp_path / "empty.edge").touch()
    with pytest.raises(BundleError, match="is empty"):
        Bundle.open(tmp_path / "empty.edge")
    (tmp_path / "model.edge").write_bytes(b"\x08\x08ONNX" * 100)
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path / "model.edge")


def test_an_unpacked_bundle_holds_the_same(edge: Path, folder: Path, key: SigningKey) -> None:
    with Bundle.open(edge) as packed, Bundle.open(folder) as unpacked:
        assert unpacked.verify([key.public]).id == key.public.id
        assert unpacked.digest == packed.digest
        assert unpacked.names() == packed.names()
        assert all(unpacked.read(name) == packed.read(name) for name in packed.names())
        variant = unpacked.manifest.variant("float")
        assert unpacked.artifact(variant) == folder / samples.ARTIFACT
        with pytest.raises(BundleError, match="must be unpacked"):
            packed.artifact(variant)


@pytest.mark.parametrize("name", [samples.ARTIFACT, MANIFEST, SIGNATURE, "reports/report.json"])
def test_an_unpacked_bundle_with_one_changed_byte_is_refused(
    folder: Path, key: SigningKey, name: str
) -> None:
    whole = (folder / name).read_bytes()
    for position in range(len(whole)):
        (folder / name).write_bytes(samples.flip(whole, position, 1 + position * 7 % 255))
        with pytest.raises(BundleError), Bundle.open(folder) as opened:
            opened.verify([key.public])


def test_a_link_in_an_unpacked_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    inside = folder / samples.ARTIFACT
    os.rename(inside, tmp_path / "outside")
    inside.symlink_to(tmp_path / "outside")

    with pytest.raises(BundleError, match="not a plain file"):
        Bundle.open(folder)


def test_a_link_to_a_folder_in_an_unpacked_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "golden", tmp_path / "golden")
    (folder / "golden").symlink_to(tmp_path / "golden")

    with pytest.raises(BundleError, match="not a plain file"):
        Bundle.open(folder)


def test_a_pipe_in_an_unpacked_bundle_is_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "reports/pipe")

    with pytest.raises(BundleError, match="not a plain file"):
        Bundle.open(folder)


def test_an_unpacked_bundle_obeys_the_limits_of_names_and_sizes(folder: Path) -> None:
    (folder / "reports/a b").touch()
    with pytest.raises(BundleError, match="not allowed"):
        Bundle.open(folder)
    (folder / "reports/a b").unlink()
    with (folder / "reports/huge").open("wb") as file:
        file.truncate((4 << 30) + 1)
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(folder)


def test_unpacking_over_something_leaves_it_alone(edge: Path, tmp_path: Path) -> None:
    target = tmp_path / "slot"
    target.mkdir()
    (target / "mine").touch()

    with Bundle.open(edge) as opened, pytest.raises(StorageError, match="cannot be unpacked"):
        opened.unpack(target)

    assert sorted(tmp_path.iterdir()) == [target, edge]
    assert list(target.iterdir()) == [target / "mine"]


def test_what_an_interrupted_unpacking_left_does_not_hinder_the_next(
    edge: Path, tmp_path: Path
) -> None:
    left = tmp_path / f".slot.{os.getpid()}.tmp"
    left.mkdir()
    (left / MANIFEST).write_bytes(b"half")

    with Bundle.open(edge) as opened:
        opened.unpack(tmp_path / "slot")

    assert not left.exists()
    Bundle.open(tmp_path / "slot").close()


def test_an_unpacked_bundle_holds_no_file_open(edge: Path, tmp_path: Path) -> None:
    with Bundle.open(edge) as opened:
        folder = opened.unpack(tmp_path / "slot")
    before = len(os.listdir("/proc/self/fd"))

    with Bundle.open(folder) as unpacked:
        unpacked.tensors(GOLDEN_INPUTS)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_of_too_many_files_is_no_bundle(tmp_path: Path) -> None:
    for name in (MANIFEST, *map(str, range(container.MAX_ENTRIES))):
        (tmp_path / name).touch()

    with pytest.raises(BundleError, match="more than 4096 files"):
        Bundle.open(tmp_path)


def test_an_entry_that_is_not_there_is_named(edge: Path) -> None:
    with Bundle.open(edge) as opened:
        with pytest.raises(BundleError, match="no entry nothing"):
            opened.read("nothing")
        with pytest.raises(BundleError, match=r"float.onnx has a header of more than"):
            opened.tensors(samples.ARTIFACT)
        with pytest.raises(ManifestError, match="no variant 'int8'"):
            opened.manifest.variant("int8")


@pytest.mark.parametrize(
    ("entries", "reports", "match"),
    [
        ({}, {}, "float.onnx, not in entries"),
        (samples.ENTRIES, {"report.json": b""}, "below reports/"),
        ({**samples.ENTRIES, "reports/x": b""}, {}, "cannot be listed"),
        ({**samples.ENTRIES, MANIFEST: b""}, {}, "cannot be listed"),
        ({**samples.ENTRIES, SIGNATURE: b""}, {}, "cannot be listed"),
        ({**samples.ENTRIES, "../x": b""}, {}, "Expected `str` matching"),
    ],
)
def test_what_no_reader_would_accept_is_not_written(
    tmp_path: Path,
    key: SigningKey,
    entries: dict[str, bytes | Path],
    reports: dict[str, bytes],
    match: str,
) -> None:
    path = tmp_path / "x.edge"
    with pytest.raises(BundleError, match=match):
        bundle.write(path, samples.MANIFEST, entries=entries, reports=reports, key=key)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tolerance", [math.nan, math.inf, -1.0])
def test_a_tolerance_that_is_no_number_is_not_written(
    tmp_path: Path, key: SigningKey, tolerance: float
) -> None:
    golden = Golden(reference_atol=tolerance)
    variant = msgspec.structs.replace(samples.VARIANT, golden=golden)
    content = msgspec.structs.replace(samples.MANIFEST, variants=(variant,))

    with pytest.raises(ManifestError, match="reference_atol"):
        samples.write(tmp_path / "x.edge", key, content=content)


def test_an_artefact_may_come_from_a_file(tmp_path: Path, edge: Path, key: SigningKey) -> None:
    source = tmp_path / "model.onnx"
    content = samples.ENTRIES[samples.ARTIFACT]
    assert isinstance(content, bytes)
    source.write_bytes(content)

    path = samples.write(
        tmp_path / "x.edge", key, entries={**samples.ENTRIES, samples.ARTIFACT: source}
    )

    assert path.read_bytes() == edge.read_bytes()


def test_a_missing_artefact_is_named(tmp_path: Path, key: SigningKey) -> None:
    entries = {**samples.ENTRIES, samples.ARTIFACT: tmp_path / "gone.onnx"}

    with pytest.raises(StorageError, match=r"gone\.onnx cannot be read"):
        samples.write(tmp_path / "x.edge", key, entries=entries)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_no_half_bundle(small_disk: Path, key: SigningKey) -> None:
    entries = {**samples.ENTRIES, samples.ARTIFACT: bytes(200_000)}
    kept = samples.write(small_disk / "kept.edge", key)
    before = kept.read_bytes()

    for target in (small_disk / "new.edge", kept):
        with pytest.raises(StorageError, match="No space left on device") as caught:
            samples.write(target, key, entries=entries)
        assert caught.value.hint is not None

    assert list(small_disk.iterdir()) == [kept]
    assert kept.read_bytes() == before


def test_a_full_disk_leaves_no_half_unpacked_bundle(
    small_disk: Path, tmp_path: Path, key: SigningKey
) -> None:
    entries = {**samples.ENTRIES, samples.ARTIFACT: bytes(200_000)}
    path = samples.write(tmp_path / "large.edge", key, entries=entries)

    with Bundle.open(path) as opened, pytest.raises(StorageError, match="No space left"):
        opened.unpack(small_disk / "slot")

    assert list(small_disk.iterdir()) == []


def test_views_of_a_bundle_end_with_it(edge: Path) -> None:
    opened = Bundle.open(edge)
    opened.close()

    with pytest.raises(ValueError, match="closed"):
        opened.read(MANIFEST)


def test_entries_are_read_in_place(edge: Path) -> None:
    raw = edge.read_bytes()
    with container.open_map(edge) as view:
        entry = container.read(view)[samples.ARTIFACT]
    assert raw[entry.offset : entry.offset + entry.size] == samples.ENTRIES[samples.ARTIFACT]
