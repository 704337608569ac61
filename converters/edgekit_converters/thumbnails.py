"""Thumbnails: what an input that has the shape of a picture looks like, for a report."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.data import Samples

_SIDE = 144
_LEAST_SIDE = 8


def thumbnail(samples: Samples, position: int) -> str | None:
    """A data URI of one sample; None where the model's one input has not the shape of a picture.

    A picture is `[3, h, w]`, `[1, h, w]`, `[h, w, 3]`, `[h, w, 1]` or `[h, w]`, at least 8 pixels
    each way; its values are spread over the whole range of grey.
    """
    if len(samples.arrays) != 1:
        return None
    pixels = as_pixels(next(iter(samples.arrays.values()))[position])
    if pixels is None:
        return None
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def as_pixels(sample: NDArray[Any]) -> NDArray[np.uint8] | None:
    """A sample as uint8 [h, w] or [h, w, 3], or None where it is no picture."""
    array = np.squeeze(sample, axis=0) if sample.ndim == 4 and sample.shape[0] == 1 else sample
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    coloured = array.ndim == 3 and array.shape[2] == 3
    if not (coloured or array.ndim == 2) or min(array.shape[:2]) < _LEAST_SIDE:
        return None
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    spread = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    pixels: NDArray[np.uint8] = spread.astype(np.uint8)
    return pixels
