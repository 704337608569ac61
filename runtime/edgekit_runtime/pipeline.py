"""Pre- and post-processing: the steps of a recipe, run alike by the build and on the board.

A picture goes in as an encoded file or as uint8 pixels [h, w, 3] in RGB; a float32 array comes out
in the layout the model takes, without a batch axis. Pillow is imported only where a picture must be
decoded or resized.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, RecipeError, UsageError
from edgekit.recipe import (
    CenterCrop,
    Normalise,
    PostStep,
    PreStep,
    Resample,
    Resize,
    Softmax,
)

Pixels = NDArray[np.uint8]
MAX_PIXELS = 1 << 26
MAX_FILE_BYTES = 64 << 20
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """One of the best classes of a sample."""

    index: int
    score: float
    label: str | None = None


def preprocess(
    steps: Sequence[PreStep], picture: bytes | Pixels, *, what: str = "picture"
) -> NDArray[np.float32]:
    """One model input from one picture.

    Args:
        steps: run in their order; resizing and cropping come before normalising and layout.
        picture: an encoded file, or RGB pixels [h, w, 3].
        what: names the picture in messages.

    Returns:
        A contiguous array: [h, w, 3], or [3, h, w] after a layout step to NCHW.

    Raises:
        DataError: the picture cannot be read, is too large, or is smaller than a crop.
        RecipeError: the steps are in an order that cannot be run.
    """
    pixels = decode(picture, what=what) if isinstance(picture, bytes) else _checked(picture, what)
    array: NDArray[Any] = pixels
    channels_last = True
    for step in steps:
        if isinstance(step, Resize):
            array = _resized(_still_pixels(array), step)
        elif isinstance(step, CenterCrop):
            array = _cropped(_still_pixels(array), step, what)
        elif isinstance(step, Normalise):
            array = _normalised(array, step, channels_last=channels_last)
        elif channels_last != (step.to == "NHWC"):
            array = array.transpose((1, 2, 0) if step.to == "NHWC" else (2, 0, 1))
            channels_last = not channels_last
    return np.ascontiguousarray(array, dtype=np.float32)


def decode(data: bytes, *, what: str = "picture") -> Pixels:
    """RGB pixels [h, w, 3] of an encoded picture, upright by its EXIF orientation.

    Raises `DataError` where it is damaged, of an unknown format or larger than `MAX_PIXELS`, which
    is checked before anything of that size is allocated.
    """
    image_module = _pillow()
    from PIL import ImageOps

    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{what} has {len(data)} bytes, at most {MAX_FILE_BYTES}")
    bombs = (image_module.DecompressionBombError, image_module.DecompressionBombWarning)
    try:
        with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{what} has {width} x {height} pixels, at most {MAX_PIXELS}")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except bombs as e:
        raise DataError(f"{what} has more than {MAX_PIXELS} pixels") from e
    except (OSError, ValueError, SyntaxError) as e:
        raise DataError(f"{what} is not a picture that can be read: {e}") from e
    return np.asarray(upright, dtype=np.uint8)


def postprocess(
    steps: Sequence[PostStep], scores: NDArray[Any]
) -> NDArray[np.float32] | list[list[Ranked]]:
    """Scores [n, classes] through `steps`: scores again, or the best classes of each sample.

    Raises:
        DataError: the scores have another rank, or a label list another length than the classes.
        RecipeError: a step follows `top_k`, which must be the last.
    """
    if scores.ndim != 2:
        raise DataError(f"postprocess takes scores [n, classes], it was given {list(scores.shape)}")
    values = scores.astype(np.float32)
    for position, step in enumerate(steps):
        if isinstance(step, Softmax):
            powers = np.exp(values - values.max(axis=1, keepdims=True))
            values = powers / powers.sum(axis=1, keepdims=True)
            continue
        if position != len(steps) - 1:
            raise RecipeError("top_k must be the last step of postprocess")
        return [_best(row, step.k, step.labels) for row in values]
    return values


def _best(row: NDArray[np.float32], k: int, labels: tuple[str, ...] | None) -> list[Ranked]:
    if labels is not None and len(labels) != len(row):
        raise DataError(f"top_k has {len(labels)} labels for {len(row)} classes")
    # Stable, so that equal scores rank by index on every machine.
    order = np.argsort(-row, kind="stable")[:k]
    return [
        Ranked(index=int(i), score=float(row[i]), label=labels[i] if labels else None)
        for i in order
    ]


def _checked(picture: NDArray[Any], what: str) -> Pixels:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise DataError(
            f"{what} must be uint8 [h, w, 3], it is {picture.dtype} {list(picture.shape)}"
        )
    return picture


def _still_pixels(array: NDArray[Any]) -> Pixels:
    if array.dtype != np.uint8 or array.shape[-1] != 3:
        raise RecipeError("resize and center_crop come before normalise and layout")
    return array


def _resized(pixels: Pixels, step: Resize) -> Pixels:
    height, width = pixels.shape[:2]
    size = _target(width, height, step)
    if size == (width, height):
        return pixels
    image = _pillow()
    resized = image.fromarray(pixels).resize(size, _filter(step.resample))
    return np.asarray(resized, dtype=np.uint8)


def _target(width: int, height: int, step: Resize) -> tuple[int, int]:
    if step.width is not None and step.height is not None:
        return step.width, step.height
    assert step.shorter is not None
    scale = step.shorter / min(width, height)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    if target[0] * target[1] > MAX_PIXELS:
        raise DataError(f"a picture of {width} x {height} would be resized to {target}")
    return target


def _filter(resample: Resample) -> Any:
    resampling = _pillow().Resampling
    return {
        "nearest": resampling.NEAREST,
        "bilinear": resampling.BILINEAR,
        "bicubic": resampling.BICUBIC,
    }[resample]


def _cropped(pixels: Pixels, step: CenterCrop, what: str) -> Pixels:
    height, width = pixels.shape[:2]
    if height < step.height or width < step.width:
        raise DataError(
            f"{what} is {width} x {height}, center_crop wants {step.width} x {step.height}",
            hint="resize before cropping",
        )
    top, left = (height - step.height) // 2, (width - step.width) // 2
    return pixels[top : top + step.height, left : left + step.width]


def _normalised(
    array: NDArray[Any], step: Normalise, *, channels_last: bool
) -> NDArray[np.float32]:
    shape = (1, 1, 3) if channels_last else (3, 1, 1)
    mean = np.array(step.mean, dtype=np.float32).reshape(shape)
    std = np.array(step.std, dtype=np.float32).reshape(shape)
    normal: NDArray[np.float32] = (array.astype(np.float32) - mean) / std
    return normal


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as e:
        raise UsageError("pictures need Pillow", hint="pip install pillow") from e
    return Image
