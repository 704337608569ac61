"""A source is read only when it is what it claims to be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgekit import tensors
from edgekit.errors import DataError, ModelError
from edgekit_converters import source
from edgekit_converters.source import OnnxSource, TfliteSource
from tests.converters.building import convnet, write_model
from tests.converters.tflite_models import write_dense

HONEST = convnet().SerializeToString()


def test_an_onnx_model_is_identified_by_the_sha256_of_its_file(tmp_path: Path) -> None:
    path = write_model(tmp_path)

    read = source.read(path)

    assert isinstance(read, OnnxSource)
    assert len(read.sha256) == 64


def test_a_tflite_model_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_dense(path)

    assert isinstance(source.read(path), TfliteSource)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (b"\x80\x04\x95" + bytes(40), "pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!doctype html><title>404</title>", "text file"),
        (b'{"error": "no such model"}', "JSON file"),
        (b"GGUF\x03" + bytes(40), "GGUF language model"),
        (b"\x93NUMPY\x01\x00" + bytes(40), "numpy array"),
        (b"\x1f\x8b\x08" + bytes(40), "compressed file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(40), "torch checkpoint"),
        (b"\x00\x01\x02 nothing that anyone knows", "not an ONNX model"),
    ],
)
def test_a_foreign_file_is_named_for_what_it_is(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=message) as refused:
        source.read(path)

    assert refused.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        source.read(tmp_path / "nothing.onnx")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a file"):
        source.read(tmp_path)


def test_a_saved_model_of_tensorflow_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")

    with pytest.raises(ModelError, match="TensorFlow SavedModel") as refused:
        source.read(tmp_path)

    assert "tf2onnx" in (refused.value.hint or "")


def test_an_oversized_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(source.MAX_SOURCE_BYTES + 1)

    with pytest.raises(ModelError, match="at most"):
        source.read(path)


@settings(max_examples=60)
@given(length=st.integers(0, len(HONEST) - 1))
def test_a_truncated_model_is_refused(
    length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.onnx"
    path.write_bytes(HONEST[:length])

    with pytest.raises(ModelError):
        source.read(path)


@settings(max_examples=60)
@given(position=st.integers(0, len(HONEST) - 1), value=st.integers(0, 255))
def test_a_damaged_model_is_read_or_refused_but_never_crashes(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(HONEST)
    damaged[position] = value
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(damaged)

    with suppress(ModelError):
        assert source.read(path).sha256


def grow(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]


def shrink(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def retype(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


@pytest.mark.parametrize(
    ("change", "message"),
    [(grow, "claim more than"), (shrink, "negative size"), (retype, "unknown datatype 99")],
)
def test_a_tensor_that_claims_what_it_does_not_hold_is_refused(
    change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    model = convnet()
    change(model)

    with pytest.raises(ModelError, match=message):
        source.read(write_model(tmp_path, model))


def write_external(folder: Path) -> Path:
    path = folder / "external.onnx"
    onnx.save_model(
        convnet(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def test_external_data_beside_the_model_is_read_and_counts_for_its_identity(
    tmp_path: Path,
) -> None:
    path = write_external(tmp_path)
    before = source.read(path).sha256
    weights = tmp_path / "weights.bin"
    changed = bytearray(weights.read_bytes())
    changed[0] ^= 1
    weights.write_bytes(changed)

    assert source.read(path).sha256 != before


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../weights.bin", "a/../../weights.bin", "..\\weights.bin"]
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    path = write_external(tmp_path)
    model = onnx.load_model(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ModelError, match="outside the model's folder"):
        source.read(path)


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    path = write_external(inside)
    (inside / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (inside / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")

    with pytest.raises(ModelError, match="leads out of the model's folder"):
        source.read(path)


def test_external_data_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_external(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(ModelError, match="claims 40960 bytes") as refused:
        source.read(path)

    assert "cut off" in (refused.value.hint or "")


def test_weights_of_a_round_take_the_place_of_initialisers(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    weights = tmp_path / "round.safetensors"
    weights.write_bytes(tensors.encode({"second": np.ones((16, 1, 3, 3), np.float32)}))

    read = source.read(path, weights=weights)

    assert isinstance(read, OnnxSource)
    second = next(t for t in read.model.graph.initializer if t.name == "second")
    assert np.all(numpy_helper.to_array(second) == 1)
    assert read.sha256 != source.read(path).sha256


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"third": np.ones(3, np.float32)}, "'third', which is no initialiser"),
        ({"second": np.ones((16, 1, 3), np.float32)}, r"float32 \[16, 1, 3\], the model has"),
        ({"second": np.ones((16, 1, 3, 3), np.float64)}, "is float64"),
        ({"second": np.full((16, 1, 3, 3), np.nan, np.float32)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    arrays: tensors.Arrays, message: str, tmp_path: Path
) -> None:
    weights = tmp_path / "round.safetensors"
    weights.write_bytes(tensors.encode(arrays))

    with pytest.raises(DataError, match=message):
        source.read(write_model(tmp_path), weights=weights)


def test_a_text_tensor_counts_by_its_texts(tmp_path: Path) -> None:
    model = convnet()
    words = numpy_helper.from_array(np.array(["a", "bc"], dtype=object), "words")
    model.graph.initializer.append(words)

    assert isinstance(source.read(write_model(tmp_path, model)), OnnxSource)
