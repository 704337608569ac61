"""Decode: an encoded picture to RGB, upright, within limits that hold before memory is taken.

Pillow is imported here and nowhere else, and only where a picture must be decoded or resized. It
gives the interpreter free while it works.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, EngineNotInstalled
from edgekit_runtime.pipeline.frame import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

MAX_FILE_BYTES = 64 << 20
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SERVED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What strangers may send: libtiff, for one, writes to the log of the process by itself."""


def decode(data: bytes, *, what: str = "picture", most_pixels: int = MAX_PIXELS) -> Pixels:
    """RGB pixels [h, w, 3] of an encoded picture; see `open_image`."""
    return np.asarray(open_image(data, what=what, most_pixels=most_pixels), dtype=np.uint8)


def open_image(
    data: bytes, *, what: str, most_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Image:
    """An encoded picture as RGB, upright by its EXIF orientation.

    Args:
        data: a file of one of the formats; of several frames the first counts.
        what: names the picture in messages.
        most_pixels: a larger one is refused.
        formats: that are read, as Pillow calls them.

    Raises:
        DataError: it is damaged, of an unknown format or too large, which its header says before
            anything of that size is allocated.
        EngineNotInstalled: Pillow is not on this machine.
    """
    image_module = pillow()
    from PIL import ImageOps

    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{what} has {len(data)} bytes, at most {MAX_FILE_BYTES}")
    bombs = (image_module.DecompressionBombError, image_module.DecompressionBombWarning)
    try:
        image: Image = image_module.open(io.BytesIO(data), formats=list(formats))
        width, height = image.size
        if width * height > most_pixels:
            raise DataError(f"{what} has {width} x {height} pixels, at most {most_pixels}")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image if image.mode == "RGB" else image.convert("RGB")
    except DataError:
        raise
    except bombs as e:
        raise DataError(f"{what} has more than {most_pixels} pixels") from e
    except Exception as e:
        # Its readers raise whatever a damaged file leads them to: struct.error, IndexError, …
        raise DataError(f"{what} is not a picture that can be read: {e}") from e


def pillow() -> Any:
    """The module `PIL.Image`, raising `EngineNotInstalled` where there is none."""
    try:
        from PIL import Image
    except ImportError as e:
        raise EngineNotInstalled("pictures need Pillow", hint="pip install pillow") from e
    return Image
