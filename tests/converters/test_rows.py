"""Samples in a file answer as the array they were, and are read only where they are asked for."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgekit.errors import DataError, StorageError
from edgekit.manifest import TensorSpec
from edgekit_converters import npz
from edgekit_converters.rows import Rows, chunks, keep
from edgekit_runtime.engines.batches import iter_batches

DTYPES = ("<f4", "<f8", "<f2", "<i8", "u1", "?")


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[Any]:
    """Samples of any rank, in the order of C or of Fortran."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6))
    array = draw(hnp.arrays(draw(st.sampled_from(DTYPES)), shape))
    return np.asfortranarray(array) if draw(st.booleans()) else array


def packed(name: str, array: NDArray[Any], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    content, file = io.BytesIO(), io.BytesIO()
    np.save(content, array)
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{name}.npy", content.getvalue())
    return file.getvalue()


def stored(array: NDArray[Any], folder: Path) -> Rows:
    content = np.ascontiguousarray(array)
    file = keep([b"before", content.tobytes()], scratch=folder)
    return Rows(file, offset=6, shape=array.shape, dtype=array.dtype)


@given(array=arrays(), compressed=st.booleans())
def test_an_array_of_a_file_comes_back_as_it_was(
    array: NDArray[Any], compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("npz")
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    (folder / "data.npz").write_bytes(packed("x", array, compression=method))

    rows = npz.read(folder / "data.npz", scratch=folder)["x"]

    assert (rows.shape, rows.dtype, rows.ndim) == (array.shape, array.dtype, array.ndim)
    assert np.array_equal(np.asarray(rows), array, equal_nan=array.dtype.kind == "f")


def test_an_array_in_fortran_order_is_turned_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.asfortranarray(np.arange(7 * 3 * 2, dtype=np.int64).reshape(7, 3, 2))
    (tmp_path / "data.npz").write_bytes(packed("x", array))
    monkeypatch.setattr(npz, "_TURN_BYTES", 2 * 3 * 2 * 8)

    rows = npz.read(tmp_path / "data.npz", scratch=tmp_path)["x"]

    assert np.array_equal(np.asarray(rows), array)


@given(st.data())
def test_rows_are_indexed_as_an_array_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    array = np.arange(60).reshape(20, 3)[: data.draw(st.integers(1, 20))]
    rows = stored(array, tmp_path_factory.mktemp("rows"))
    positions = st.integers(-len(array), len(array) - 1)
    index: Any = data.draw(
        positions
        | st.slices(len(array))
        | st.lists(positions).map(lambda found: np.array(found, np.intp))
        | hnp.arrays(bool, len(array))
    )

    assert np.array_equal(rows[index], array[index])
    assert np.array_equal(rows[index, ...], array[index])
    if isinstance(index, np.ndarray):
        chosen = rows.take(np.flatnonzero(index) if index.dtype == bool else index)
        assert np.array_equal(np.asarray(chosen), array[index])
        assert np.array_equal(chosen[1:], array[index][1:])


def test_rows_are_walked_through_sample_by_sample_and_in_chunks(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(6, 4)
    rows = stored(array, tmp_path)

    assert np.array_equal(np.stack(list(rows)), array)
    assert [len(chunk) for chunk in chunks(rows, size_bytes=40)] == [2, 2, 2]
    assert [len(chunk) for chunk in chunks(rows, size_bytes=1)] == [1] * 6


@pytest.mark.parametrize("shape", [(-1, 4), (2, 4), ()])
def test_batches_are_cut_from_rows_as_from_arrays(shape: tuple[int, ...], tmp_path: Path) -> None:
    inner = (4,) if shape == (-1, 4) else shape
    array = np.random.default_rng(0).random((5, *inner), np.float32)
    spec = TensorSpec(name="x", datatype="FP32", shape=shape)

    batches = [
        [batch["x"] for batch in iter_batches([spec], {"x": samples}, size=1)]
        for samples in (array, stored(array, tmp_path))
    ]

    for one, other in zip(*batches, strict=True):
        assert one.shape == other.shape
        assert np.array_equal(one, other)


def test_rows_take_no_second_axis(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="axis 0"):
        stored(np.zeros((3, 3)), tmp_path)[0, 1]


def test_rows_never_pretend_to_be_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes a copy"):
        np.array(stored(np.zeros(3), tmp_path), copy=False)


def test_what_is_kept_leaves_no_file_behind(tmp_path: Path) -> None:
    rows = stored(np.arange(5), tmp_path)

    assert list(tmp_path.iterdir()) == []
    assert rows[4] == 4


def test_samples_are_read_from_the_file_that_was_checked_though_another_takes_its_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(packed("x", np.arange(9)))
    rows = npz.read(path, scratch=tmp_path)["x"]
    (tmp_path / "other").write_bytes(b"")

    (tmp_path / "other").rename(path)

    assert np.asarray(rows).tolist() == list(range(9))


def test_a_file_that_was_cut_while_it_was_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(packed("x", np.arange(9)))
    rows = npz.read(path, scratch=tmp_path)["x"]

    path.write_bytes(b"")

    with pytest.raises(DataError, match=r"data\.npz ends before byte"):
        rows[8]


@given(position=st.integers(0, 2000), bit=st.integers(0, 7))
def test_a_changed_bit_is_found_or_changes_nothing(
    position: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = np.arange(256, dtype=np.float32)
    whole = bytearray(packed("x", array))
    whole[position % len(whole)] ^= 1 << bit
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    path.write_bytes(whole)

    try:
        found = npz.read(path, scratch=path.parent)
    except DataError:
        return
    assert [np.asarray(rows).tolist() for rows in found.values()] == [array.tolist()]


def test_an_entry_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.zeros(4))
    raw = content.getvalue().replace(b"(4,)", b"(9,)")
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", raw)

    with pytest.raises(DataError, match="has not the size"):
        npz.read(tmp_path / "data.npz", scratch=tmp_path)


def test_a_scratch_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(packed("x", np.zeros(9), compression=zipfile.ZIP_DEFLATED))

    with pytest.raises(StorageError, match="gone"):
        npz.read(tmp_path / "data.npz", scratch=tmp_path / "gone")
