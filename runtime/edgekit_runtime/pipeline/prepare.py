"""Prepare: one picture to one sample of a model's input, step by step.

A picture stays with Pillow while it is resized and cropped, and is a numpy array from then on.
Nothing but resizing needs Pillow where pixels are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, RecipeError
from edgekit.steps import (
    CenterCrop,
    Channels,
    Crop,
    Dtype,
    Layout,
    Letterbox,
    Normalise,
    Order,
    PreStep,
    Resample,
    Resize,
)
from edgekit_runtime.pipeline.decode import FORMATS, Pixels, open_image, pillow
from edgekit_runtime.pipeline.frame import (
    MAX_PIXELS,
    Frame,
    Placed,
    after,
    cropped,
    letterboxed,
    resized,
    whole,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# ITU-R BT.601 luma in 16 bits, as Pillow and libjpeg compute it.
_LUMA = np.array([19595, 38470, 7471], np.uint32)
_HALF = 0x8000
_DTYPES = {"UINT8": np.uint8, "FP16": np.float16, "FP32": np.float32}


class Sample(NamedTuple):
    """A picture as the model takes it, without a batch axis, and where it lies in there."""

    array: NDArray[Any]
    frame: Frame


def preprocess(
    steps: Sequence[PreStep], picture: bytes | Pixels, *, what: str = "picture"
) -> NDArray[Any]:
    """One model input from one picture; see `prepare`."""
    return prepare(steps, picture, what=what).array


def prepare(
    steps: Sequence[PreStep],
    picture: bytes | Pixels,
    *,
    what: str = "picture",
    most_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> Sample:
    """One model input from one picture.

    Args:
        steps: run in their order: resizing and cropping, channels, then the others.
        picture: an encoded file, or RGB pixels [h, w, 3].
        what: names the picture in messages.
        most_pixels: a larger picture is refused.
        formats: of files that are read.

    Returns:
        A contiguous array: [h, w, c], or [c, h, w] after a layout step to NCHW; float32 unless a
        dtype step says otherwise.

    Raises:
        DataError: the picture cannot be read, is too large, or is smaller than a crop.
        RecipeError: the steps are in an order that cannot be run.
        EngineNotInstalled: Pillow is needed, and not on this machine.
    """
    require_order(steps)
    given: Pixels | Image
    if isinstance(picture, bytes):
        given = open_image(picture, what=what, most_pixels=most_pixels, formats=formats)
        frame = whole(*given.size)
    else:
        given = _checked(picture, what, most_pixels)
        frame = whole(picture.shape[1], picture.shape[0])
    for step in steps:
        if isinstance(step, Resize | Letterbox | CenterCrop | Crop):
            given = _shaped(given, step, frame, what)
            frame = after(frame, step, what=what)
    return Sample(_finished(np.asarray(given, dtype=np.uint8), steps), frame)


def require_order(steps: Sequence[PreStep]) -> None:
    """Raise `RecipeError` where steps cannot be run in their order."""
    latest = 0
    for step in steps:
        stage = _stage(step)
        if stage < latest:
            raise RecipeError(
                f"preprocess: {step.__struct_config__.tag} comes before normalise, layout and"
                " dtype, and what resizes or crops before channels"
            )
        latest = stage
    kinds = [type(step) for step in steps]
    for kind in (Channels, Normalise, Dtype):
        if kinds.count(kind) > 1:
            raise RecipeError(f"preprocess: {kind.__struct_config__.tag} comes twice")
    if Normalise in kinds and any(isinstance(s, Dtype) and s.to == "UINT8" for s in steps):
        raise RecipeError(
            "preprocess: normalise makes floats of pixels, which dtype UINT8 takes as they are",
            hint="leave one of the two out",
        )


def _stage(step: PreStep) -> int:
    if isinstance(step, Resize | Letterbox | CenterCrop | Crop):
        return 0
    return 1 if isinstance(step, Channels) else 2


def _checked(picture: NDArray[Any], what: str, most_pixels: int) -> Pixels:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise DataError(
            f"{what} must be uint8 [h, w, 3], it is {picture.dtype} {list(picture.shape)}"
        )
    if not 0 < picture.shape[0] * picture.shape[1] <= most_pixels:
        raise DataError(f"{what} has no pixels, or more than {most_pixels}: {picture.shape}")
    return picture


def _shaped(
    given: Pixels | Image, step: Resize | Letterbox | CenterCrop | Crop, frame: Frame, what: str
) -> Pixels | Image:
    """A picture after one step; `frame` is what stood before it."""
    width, height = frame.input_width, frame.input_height
    if isinstance(step, Resize):
        return _scaled(given, resized(step, width, height), (width, height), step)
    if isinstance(step, Letterbox):
        return _padded(given, letterboxed(step, width, height), (width, height), step)
    left, top = cropped(step, width, height, what=what)
    if isinstance(given, np.ndarray):
        return given[top : top + step.height, left : left + step.width]
    return given.crop((left, top, left + step.width, top + step.height))


def _scaled(
    given: Pixels | Image, size: tuple[int, int], before: tuple[int, int], step: Resize | Letterbox
) -> Pixels | Image:
    if size == before:
        return given
    image, method = _image(given), _filter(step.resample)
    if step.antialias:
        return image.resize(size, method)
    scale = (before[0] / size[0], 0, 0, 0, before[1] / size[1], 0)
    return image.transform(size, pillow().Transform.AFFINE, scale, method)


def _padded(
    given: Pixels | Image, placed: Placed, before: tuple[int, int], step: Letterbox
) -> Pixels | Image:
    scaled = _scaled(given, (placed.width, placed.height), before, step)
    if (placed.width, placed.height) == (step.width, step.height):
        return scaled
    pixels = np.empty((step.height, step.width, 3), np.uint8)
    pixels[:] = step.fill
    bottom, right = placed.top + placed.height, placed.left + placed.width
    pixels[placed.top : bottom, placed.left : right] = np.asarray(scaled)
    return pixels


def _image(given: Pixels | Image) -> Image:
    if not isinstance(given, np.ndarray):
        return given
    image: Image = pillow().fromarray(np.ascontiguousarray(given))
    return image


def _filter(resample: Resample) -> Any:
    resampling = pillow().Resampling
    return {
        "nearest": resampling.NEAREST,
        "bilinear": resampling.BILINEAR,
        "bicubic": resampling.BICUBIC,
    }[resample]


def _finished(pixels: Pixels, steps: Sequence[PreStep]) -> NDArray[Any]:
    """Pixels [h, w, 3] after the steps that follow resizing and cropping."""
    array: NDArray[Any] = pixels
    channels_last, dtype = True, "FP32"
    for step in steps:
        if isinstance(step, Channels):
            array = _ordered(array, step.order)
        elif isinstance(step, Normalise):
            array = _normalised(array, step, channels_last=channels_last)
        elif isinstance(step, Dtype):
            dtype = step.to
        elif isinstance(step, Layout) and channels_last != (step.to == "NHWC"):
            array = array.transpose((1, 2, 0) if step.to == "NHWC" else (2, 0, 1))
            channels_last = not channels_last
    return np.ascontiguousarray(array, dtype=_DTYPES[dtype])


def _ordered(pixels: Pixels, order: Order) -> Pixels:
    if order == "gray":
        luma = (pixels @ _LUMA + _HALF) >> 16
        return luma.astype(np.uint8)[..., np.newaxis]
    return pixels[..., ::-1] if order == "bgr" else pixels


def _normalised(
    array: NDArray[Any], step: Normalise, *, channels_last: bool
) -> NDArray[np.float32]:
    channels = array.shape[2 if channels_last else 0]
    if not {len(step.mean), len(step.std)} <= {1, channels}:
        raise RecipeError(f"normalise has three numbers, the picture {channels} channel")
    shape = (1, 1, -1) if channels_last else (-1, 1, 1)
    normal = array.astype(np.float32)
    normal -= np.array(step.mean, np.float32).reshape(shape)
    normal /= np.array(step.std, np.float32).reshape(shape)
    return normal
