"""A legacy torch checkpoint is read without torch, and a hostile one does no harm."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgekit.errors import ModelError
from edgekit_converters.demo.checkpoint import read_checkpoint

Arrays = dict[str, NDArray[Any]]

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
HEADER = MAGIC + pickle.dumps(1001, protocol=2) + pickle.dumps({"little_endian": True}, protocol=2)
STORAGES = {
    "f2": "HalfStorage",
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "i8": "LongStorage",
    "u1": "ByteStorage",
}


# A legacy checkpoint, written as torch did, in the few operations of a pickle that it takes.


def plain(value: str | int | tuple[int, ...] | None) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    return b"(" + b"".join(map(plain, value)) + b"t"


def tensor(
    key: str, kind: str, count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    storage = (
        b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(key) + plain("cpu")
    ) + (plain(count) + plain(None) + b"tQ")
    arguments = storage + plain(offset) + plain(shape) + plain(strides) + b"\x89" + b"}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state_dict(tensors: dict[str, bytes]) -> bytes:
    items = b"".join(plain(name) + value for name, value in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def checkpoint(arrays: Arrays) -> bytes:
    tensors, data = {}, b""
    for index, (name, array) in enumerate(arrays.items()):
        # A transposed array is a view of a storage in another order, as in the real file.
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        data += struct.pack("<q", array.size) + array.transpose(order).tobytes()
        strides = tuple(stride // array.itemsize for stride in array.strides)
        kind = STORAGES[array.dtype.str[1:]]
        tensors[name] = tensor(str(index), kind, array.size, 0, array.shape, strides)
    keys = [str(index) for index in range(len(arrays))]
    return HEADER + state_dict(tensors) + pickle.dumps(keys, protocol=2) + data


SMALL = checkpoint(
    {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "bias": np.array([1.5, -2.0], np.float16),
        "count": np.array(7, np.int64),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


def read(folder: Path, raw: bytes) -> Arrays:
    path = folder / "model.pth"
    path.write_bytes(raw)
    return read_checkpoint(path)


@given(
    arrays=st.dictionaries(
        st.text(max_size=8),
        hnp.arrays(
            st.sampled_from([np.dtype(f"<{name}") for name in STORAGES]),
            hnp.array_shapes(min_dims=0, max_dims=4, max_side=4),
        ),
        max_size=4,
    ),
    transpose=st.booleans(),
)
def test_a_checkpoint_gives_back_the_tensors_that_were_saved(
    folder: Path, arrays: Arrays, transpose: bool
) -> None:
    saved = {name: array.T if transpose else array for name, array in arrays.items()}

    found = read(folder, checkpoint(saved))

    assert list(found) == list(saved)
    for name, array in saved.items():
        assert found[name].dtype == array.dtype
        assert not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("header", [b"", MAGIC, HEADER], ids=["first", "second", "state"])
def test_a_malicious_pickle_is_refused_before_it_runs(
    tmp_path: Path, header: bytes, protocol: int
) -> None:
    marker = tmp_path / "ran"

    with pytest.raises(ModelError):
        read(tmp_path, header + pickle.dumps(Malicious(marker), protocol=protocol))

    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "torch.load", "torch.FloatTensor", "collections.Counter"]
)
def test_a_pickle_may_name_nothing_but_tensors(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")

    with pytest.raises(ModelError, match=f"{name}, which is not allowed"):
        read(tmp_path, HEADER + f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1"))


@given(data=st.data())
def test_a_truncated_checkpoint_is_refused(folder: Path, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(SMALL) - 1))

    with pytest.raises(ModelError):
        read(folder, SMALL[:length])


def test_a_checkpoint_cut_inside_its_tensors_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"cut short at byte {len(SMALL) - 1}, inside storage '2'"):
        read(tmp_path, SMALL[:-1])


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="3 bytes follow"):
        read(tmp_path, SMALL + b"abc")


@given(position=st.integers(0, len(SMALL) - 1), value=st.integers(0, 255))
@example(position=52, value=ord("\\"))  # in the name of a class
def test_a_changed_byte_never_ends_in_another_error(
    folder: Path, position: int, value: int
) -> None:
    changed = bytearray(SMALL)
    changed[position] = value

    try:
        found = read(folder, bytes(changed))
    except ModelError:
        return
    assert sum(array.size for array in found.values()) <= len(SMALL)


def test_a_few_bytes_cannot_ask_for_gigabytes_of_memo(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="memo 4026531840"):
        read(tmp_path, HEADER + b"\x80\x02}r" + struct.pack("<I", 0xF0000000) + b".")


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "reason"),
    [
        (0, (1_000_000, 1_000_000), (0, 0), "larger than its storage"),
        (0, (2,), (4,), "beyond its storage"),
        (4, (1,), (1,), "beyond its storage"),
        (0, (0, 2**31 - 1, 2**31 - 1, 2**31 - 1), (1, 1, 1, 1), "beyond its storage"),
        (-1, (1,), (1,), "not a view"),
        (3, (2,), (-1,), "not a view"),
        (0, (2,), (1, 1), "not a view"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], reason: str
) -> None:
    state = state_dict({"w": tensor("0", "FloatStorage", 4, offset, shape, strides)})
    data = pickle.dumps(["0"], protocol=2) + struct.pack("<q", 4) + bytes(16)

    with pytest.raises(ModelError, match=reason):
        read(tmp_path, HEADER + state + data)


@pytest.mark.parametrize("count", [-1, 2**62])
def test_a_storage_of_an_impossible_size_is_refused(tmp_path: Path, count: int) -> None:
    state = state_dict({"w": tensor("0", "FloatStorage", 4, 0, (4,), (1,))})
    data = pickle.dumps(["0"], protocol=2) + struct.pack("<q", count) + bytes(16)

    with pytest.raises(ModelError, match="inside storage '0'"):
        read(tmp_path, HEADER + state + data)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_checkpoint(tmp_path / "none.pth")
