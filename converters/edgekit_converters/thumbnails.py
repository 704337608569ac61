"""Thumbnails: what an input looks like in a report: a picture, a signal, or its numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.data import Samples
from edgekit_converters.plots import lines

_SIDE = 160
_LEAST_SIDE = 8
_QUALITY = 80
_CHANNELS = 8
_LEAST_LENGTH = 32
_POINTS = 240
_SHOWN_NUMBERS = 12
_SHOWN_INPUTS = 3


def sample_view(
    samples: Samples, position: int, *, over: Callable[[int, int], str] | None = None
) -> str:
    """One sample as markup: the first input that can be drawn, else the numbers of all.

    Args:
        over: from a picture's height and width to a drawing that lies upon it.
    """
    inputs = {name: np.asarray(array[position]) for name, array in samples.arrays.items()}
    for name, array in inputs.items():
        pixels = as_pixels(array)
        if pixels is not None:
            image = f'<img alt="input {escape(name)}" src="{_data_uri(pixels)}">'
            if over is None:
                return image
            height, width = pixels.shape[:2]
            return f'<div class="seen">{image}{over(height, width)}</div>'
    for name, array in inputs.items():
        rows = as_signal(array)
        if rows is not None:
            return lines(rows.tolist(), title=f"input {name}")
    texts = [_described(name, array) for name, array in list(inputs.items())[:_SHOWN_INPUTS]]
    return f'<p class="numbers">{"<br>".join(escape(text) for text in texts)}</p>'


def as_pixels(sample: NDArray[Any]) -> NDArray[np.uint8] | None:
    """A sample as uint8 [h, w] or [h, w, 3], or None where it is no picture.

    A picture is `[3, h, w]`, `[1, h, w]`, `[h, w, 3]`, `[h, w, 1]` or `[h, w]`, at least 8 pixels
    each way; its values are spread over the whole range of grey.
    """
    if sample.dtype.kind not in "fiub":
        return None
    array = np.squeeze(sample, axis=0) if sample.ndim == 4 and sample.shape[0] == 1 else sample
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    coloured = array.ndim == 3 and array.shape[2] == 3
    if not (coloured or array.ndim == 2) or min(array.shape[:2]) < _LEAST_SIDE:
        return None
    values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    spread = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    pixels: NDArray[np.uint8] = spread.astype(np.uint8)
    return pixels


def as_signal(sample: NDArray[Any]) -> NDArray[np.float64] | None:
    """A sample as rows [c, n] of a signal over time, or None where it is none.

    A signal holds floats: `[n]`, or up to eight channels of it, first or last. A long one is
    thinned evenly.
    """
    array = np.squeeze(sample)
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or array.size < _LEAST_LENGTH:
        return None
    rows = array.reshape(1, -1) if array.ndim == 1 else array
    if rows.shape[0] > rows.shape[1]:
        rows = rows.T
    if rows.shape[0] > _CHANNELS or rows.shape[1] < _LEAST_LENGTH:
        return None
    kept = np.linspace(0, rows.shape[1] - 1, min(rows.shape[1], _POINTS)).round().astype(np.intp)
    signal: NDArray[np.float64] = np.nan_to_num(rows[:, kept].astype(np.float64))
    return signal


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _described(name: str, array: NDArray[Any]) -> str:
    """Shape and the first numbers of an input, or how they are spread."""
    head = f"{name} {list(array.shape)}"
    if array.dtype.kind == "f" and array.size > _SHOWN_NUMBERS:
        return f"{head}: {array.min():.3g} to {array.max():.3g}, mean {array.mean():.3g}"
    first = ", ".join(str(value) for value in array.reshape(-1)[:_SHOWN_NUMBERS].tolist())
    return f"{head}: {first}{', …' if array.size > _SHOWN_NUMBERS else ''}"
