"""Frame: where the pixels of a picture lie in a model's input, so that boxes find their way back.

Resizing, letterboxing and cropping are worked out here once, as pure functions of sizes; `prepare`
does to pixels what they say. Coordinates are continuous: a pixel reaches from its number to the
next one, so that a box around a whole picture is 0, 0, width, height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.steps import CenterCrop, Crop, Letterbox, PreStep, Resize

MAX_PIXELS = 1 << 26
"""Of a picture, as it comes and as a step leaves it."""


@dataclass(frozen=True)
class Frame:
    """A picture in a model's input: a point x of the picture lies at x * scale + offset there.

    Attributes:
        width, height: of the picture, upright, in pixels.
        input_width, input_height: of what the steps made of it, in pixels.
    """

    width: int
    height: int
    input_width: int
    input_height: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    def to_picture(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes [k, 4] (x1, y1, x2, y2) in pixels of the input, in pixels of the picture.

        What lies beyond the picture's edges (in the padding) is cut off.
        """
        offset = np.array([self.offset_x, self.offset_y] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        edges = np.array([self.width, self.height] * 2, np.float32)
        inside: NDArray[np.float32] = np.clip((boxes - offset) / scale, np.float32(0), edges)
        return inside


@dataclass(frozen=True)
class Placed:
    """A picture resized to (width, height), its corner put at (left, top) of a larger one."""

    width: int
    height: int
    left: int = 0
    top: int = 0


def whole(width: int, height: int) -> Frame:
    """The frame of a picture that no step has touched."""
    return Frame(width, height, width, height)


def frame_of(steps: Sequence[PreStep], width: int, height: int) -> Frame:
    """Where a picture of this size lies in what the steps make of it.

    Raises:
        DataError: a crop is larger than what it is cut from, or a resized picture too large.
    """
    frame = whole(width, height)
    for step in steps:
        frame = after(frame, step, what="picture")
    return frame


def after(frame: Frame, step: PreStep, *, what: str) -> Frame:
    """The frame that a step leaves; `what` names the picture in messages."""
    width, height = frame.input_width, frame.input_height
    if isinstance(step, Resize):
        new_width, new_height = resized(step, width, height)
        return _moved(frame, new_width, new_height, Placed(new_width, new_height))
    if isinstance(step, Letterbox):
        return _moved(frame, step.width, step.height, letterboxed(step, width, height))
    if isinstance(step, CenterCrop | Crop):
        left, top = cropped(step, width, height, what=what)
        return _moved(frame, step.width, step.height, Placed(width, height, -left, -top))
    return frame


def resized(step: Resize, width: int, height: int) -> tuple[int, int]:
    """Width and height after a resize, raising `DataError` where they are too large."""
    if step.width is not None and step.height is not None:
        return step.width, step.height
    assert step.shorter is not None
    scale = step.shorter / min(width, height)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    if target[0] * target[1] > MAX_PIXELS:
        raise DataError(f"a picture of {width} x {height} would be resized to {target}")
    return target


def letterboxed(step: Letterbox, width: int, height: int) -> Placed:
    """Where a picture comes to lie; see `Letterbox` for the source of its rounding."""
    scale = min(step.width / width, step.height / height)
    if not step.scaleup:
        scale = min(scale, 1.0)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    if not step.center:
        return Placed(new_width, new_height)
    left, top = (step.width - new_width) / 2, (step.height - new_height) / 2
    # An odd pixel goes right and below.
    return Placed(new_width, new_height, round(left - 0.1), round(top - 0.1))


def cropped(step: CenterCrop | Crop, width: int, height: int, *, what: str) -> tuple[int, int]:
    """The left and top edge of a crop, raising `DataError` where it does not fit."""
    if isinstance(step, Crop):
        left, top, asked = step.left, step.top, f"{step.width} x {step.height} at {step.left},"
        asked = f"crop wants {asked} {step.top}"
    else:
        left, top = (width - step.width) // 2, (height - step.height) // 2
        asked = f"center_crop wants {step.width} x {step.height}"
    if min(left, top) < 0 or left + step.width > width or top + step.height > height:
        raise DataError(f"{what} is {width} x {height}, {asked}", hint="resize before cropping")
    return left, top


def _moved(frame: Frame, input_width: int, input_height: int, placed: Placed) -> Frame:
    """The frame after its input was resized and put into one of another size."""
    scale_x, scale_y = placed.width / frame.input_width, placed.height / frame.input_height
    return Frame(
        frame.width,
        frame.height,
        input_width,
        input_height,
        scale_x=frame.scale_x * scale_x,
        scale_y=frame.scale_y * scale_y,
        offset_x=frame.offset_x * scale_x + placed.left,
        offset_y=frame.offset_y * scale_y + placed.top,
    )
