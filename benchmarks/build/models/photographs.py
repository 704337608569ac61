"""Square crops of twenty photographs, at the size and in the form a model takes.

Promise: the same arguments give the same pixels. The first crop of a photograph is the centre, the
others are random; all are cut at the photograph's own resolution and scaled once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit_converters.demo.photos import centre_crop, photos, random_crop

SOURCE = "foolbox 3.3.4 (MIT): 20 ImageNet photographs"
_SEED = 21

Prepare = Callable[[Image.Image], NDArray[np.float32]]


def crops(
    size: int, *, each: int, prepare: Prepare
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`each` crops of every photograph, `size` pixels a side.

    Returns:
        What `prepare` made of each crop, stacked, and the number of the photograph it is from.
    """
    found = []
    sources = photos()
    for number, photo in enumerate(sources):
        rng = np.random.default_rng([_SEED, number])
        with Image.open(photo.path) as file:
            image = file.convert("RGB")
        for offset in range(each):
            crop = random_crop(*image.size, rng) if offset else centre_crop(*image.size)
            box = (crop.left, crop.top, crop.left + crop.side, crop.top + crop.side)
            # Sums are rounded, and may end a hair outside.
            inside = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
            scaled = image.resize((size, size), Image.Resampling.BICUBIC, inside)
            if crop.mirrored:
                scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            found.append(prepare(scaled))
    return np.stack(found), np.repeat(np.arange(len(sources), dtype=np.int64), each)


def pixels(image: Image.Image) -> NDArray[np.float32]:
    """RGB pixels [h, w, 3], 0 to 255."""
    return np.asarray(image, np.float32)
