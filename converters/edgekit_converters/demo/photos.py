"""Twenty labelled ImageNet photographs of the package `foolbox`, as data sets.

Promise: the same arguments give the same bytes. Crops are cut from the photographs at their own
resolution and scaled once; samples of one photograph share a number in `groups`, so that whoever
splits or resamples the data can keep them together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit import storage
from edgekit.errors import DataError
from edgekit_converters.demo.files import package_folder, write_arrays
from edgekit_converters.demo.lite0 import SIZE

_CENTRE_FRACTION = SIZE / (SIZE + 32)
_AREA = (0.6, 1.0)
_SEED = 20


class Photo(msgspec.Struct, frozen=True):
    """A photograph and the ImageNet class, 0 to 999, that it shows."""

    path: Path
    label: int


class Crop(msgspec.Struct, frozen=True):
    """A square cut out of a photograph; its corner and side are in pixels and need not be whole."""

    left: float
    top: float
    side: float
    mirrored: bool = False


def photos() -> list[Photo]:
    """The photographs, in the order of their numbers.

    Raises:
        DataError: the package `foolbox` is not installed.
    """
    files = sorted((package_folder("foolbox") / "data").glob("imagenet_*_*.jpg"))
    if not files:
        raise DataError(
            "package foolbox holds no ImageNet photographs", hint="pip install foolbox==3.3.4"
        )
    return [Photo(file, int(file.stem.split("_")[-1])) for file in files]


def write_photos(folder: Path, *, crops: int) -> Path:
    """Write `photos.npz`, a data set for `edgekit build --data`, and return its path.

    It holds, photo after photo and `crops` of each, `input` float32 [n, 3, 224, 224] preprocessed
    for EfficientNet-Lite0, `labels` int64 [n] and `groups` int64 [n], the photo's number. The
    first crop of a photo is the centre crop of the usual evaluation, the others are random.

    Args:
        crops: samples of each photo, at least 1; 600 kB each, all in memory.

    Raises:
        DataError: `crops` is less than 1, or the package `foolbox` is not installed.
        StorageError: the file cannot be written.
    """
    if crops < 1:
        raise DataError(f"crops is {crops}", hint="ask for at least one crop of each photo")
    sources = photos()
    samples = np.empty((len(sources) * crops, 3, SIZE, SIZE), np.float32)
    for number, photo in enumerate(sources):
        first = number * crops
        for offset, pixels in enumerate(_cut(photo, crops, np.random.default_rng([_SEED, number]))):
            samples[first + offset] = preprocess(pixels)
    path = folder / "photos.npz"
    write_arrays(
        path,
        input=samples,
        labels=np.repeat(np.array([photo.label for photo in sources], np.int64), crops),
        groups=np.repeat(np.arange(len(sources), dtype=np.int64), crops),
    )
    return path


def write_pictures(folder: Path) -> None:
    """Copy the photographs to `folder` as they are, with `labels.csv` (`file,label`).

    Raises:
        DataError: the package `foolbox` is not installed.
        StorageError: a file cannot be written.
    """
    sources = photos()
    for photo in sources:
        storage.write(folder / photo.path.name, photo.path.read_bytes())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "label"))
    writer.writerows((photo.path.name, photo.label) for photo in sources)
    storage.write(folder / "labels.csv", table.getvalue().encode())


def preprocess(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What EfficientNet-Lite0 was trained on: RGB [h, w, 3] to `(x - 127) / 128`, [3, h, w]."""
    return (pixels.transpose(2, 0, 1).astype(np.float32) - np.float32(127)) / np.float32(128)


def centre_crop(width: int, height: int) -> Crop:
    """The square that the usual evaluation cuts: 7/8 of the shorter side."""
    side = min(width, height) * _CENTRE_FRACTION
    return Crop((width - side) / 2, (height - side) / 2, side)


def random_crop(width: int, height: int, rng: np.random.Generator) -> Crop:
    """A square of .6 to 1.0 of the area of the largest one, anywhere, mirrored half of the time."""
    side = min(width, height) * float(np.sqrt(rng.uniform(*_AREA)))
    left, top = rng.uniform(0, (width - side, height - side))
    return Crop(float(left), float(top), side, mirrored=bool(rng.integers(2)))


def _cut(photo: Photo, crops: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    with Image.open(photo.path) as file:
        image = file.convert("RGB")
    yield _pixels(image, centre_crop(*image.size))
    for _ in range(crops - 1):
        yield _pixels(image, random_crop(*image.size, rng))


def _pixels(image: Image.Image, crop: Crop) -> NDArray[np.uint8]:
    # Sums are rounded, and may end a hair outside.
    right = min(crop.left + crop.side, image.width)
    bottom = min(crop.top + crop.side, image.height)
    scaled = image.resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC, (crop.left, crop.top, right, bottom)
    )
    if crop.mirrored:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(scaled)
