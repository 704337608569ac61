"""Text drawn on photographs: what an OCR model reads, with known fonts and no two alike.

Promise: the same generator draws the same pictures. Text is dark on a washed-out piece of a real
photograph, a little turned and blurred and grainy, as a camera sees print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.photos import photos

_FONTS = (
    ("font-manrope==0.0.2", "font_manrope/files/Manrope-Regular.ttf"),
    ("font-caladea==0.0.2", "font_caladea/files/Caladea-Regular.ttf"),
    ("font-caladea==0.0.2", "font_caladea/files/Caladea-Italic.ttf"),
    ("font-hanken-grotesk==0.0.2", "font_hanken_grotesk/files/HankenGrotesk-SemiBold.otf"),
    ("font-source-serif-pro==0.0.1", "font_source_serif_pro/files/SourceSerifPro-Regular.ttf"),
)


def fonts(cache: Path, size: int) -> list[ImageFont.FreeTypeFont]:
    """The fonts, `size` pixels high."""
    return [ImageFont.truetype(str(pypi(cache, package) / file), size) for package, file in _FONTS]


def paper(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A piece of a photograph, washed out until dark text can be read on it."""
    sources = photos()
    with Image.open(sources[int(rng.integers(len(sources)))].path) as file:
        image = file.convert("RGB")
    left = int(rng.integers(max(1, image.width - width)))
    top = int(rng.integers(max(1, image.height - height)))
    piece = image.resize((width, height), box=(left, top, left + width, top + height))
    return Image.blend(piece, Image.new("RGB", piece.size, "white"), rng.uniform(0.55, 0.85))


def line_of(
    words: Sequence[str], font: ImageFont.FreeTypeFont, width: int
) -> tuple[str, list[str]]:
    """As many words as fit `width` pixels, one at least where there is one, and the words left."""
    taken = 1
    while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) < width:
        taken += 1
    return " ".join(words[:taken]), list(words[taken:])


def write(
    image: Image.Image,
    text: str,
    *,
    at: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    rng: np.random.Generator,
) -> None:
    """Draw a line of dark text onto `image`, its upper left corner at `at`."""
    ink = tuple(int(level) for level in rng.integers(0, 90, 3))
    ImageDraw.Draw(image).text(at, text, font=font, fill=ink)


def seen(image: Image.Image, rng: np.random.Generator) -> NDArray[np.float32]:
    """The picture as a camera gives it: RGB pixels [h, w, 3], 0 to 255."""
    turned = image.rotate(
        rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=(235, 235, 235)
    )
    soft = turned.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    grain = rng.normal(0, rng.uniform(0, 8), (image.height, image.width, 3))
    return np.clip(np.asarray(soft, np.float32) + grain, 0, 255).astype(np.float32)


def normalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the PP-OCR models take: BGR in -1 to 1, [3, h, w]."""
    return ((pixels[:, :, ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5).astype(np.float32)
