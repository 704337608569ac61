"""Suppress: of boxes that overlap, the best; vectorised, and bounded in what it does.

Greedy non-maximum suppression as `torchvision.ops.batched_nms` does it: best score first, a box
goes where it overlaps one that was kept, of its own class, by more than the threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ious(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Intersection over union [k, l] of boxes [k, 4] and [l, 4] (x1, y1, x2, y2); 0 for empty."""
    low = np.maximum(a[:, np.newaxis, :2], b[np.newaxis, :, :2])
    high = np.minimum(a[:, np.newaxis, 2:], b[np.newaxis, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    either = _areas(a)[:, np.newaxis] + _areas(b)[np.newaxis] - both
    shared: NDArray[Any] = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    return shared


def suppressed(
    boxes: NDArray[Any], classes: NDArray[Any], *, iou_threshold: float, most: int
) -> NDArray[np.intp]:
    """Positions of the boxes that stay, at most `most`.

    Args:
        boxes: [k, 4], best first.
        classes: [k]; boxes of different classes leave each other alone.
    """
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        same = classes[left] == classes[best]
        same &= ious(boxes[best : best + 1], boxes[left])[0] > iou_threshold
        left = left[~same]
    return np.array(kept, np.intp)


def _areas(boxes: NDArray[Any]) -> NDArray[Any]:
    areas: NDArray[Any] = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    return areas
