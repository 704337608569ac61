"""Boxes: what detectors write, read into one form.

| layout | outputs |
|---|---|
| rows | [n, m, 6]: x1, y1, x2, y2, score, class; rows without a score are padding |
| anchors_last | [n, 4 + c, anchors] (YOLOv8 and later): centre x, y, width, height, class scores |
| anchors_first | [n, anchors, 5 + c] (YOLOv5): the same, with an object's score before those |
| separate | corners [n, m, 4], scores [n, m], classes [n, m]; `separate_yx` writes y before x |

Scores are probabilities, after the sigmoid. Raw anchors go through non-maximum suppression, class
by class. Corners keep their unit, pixels or shares of the picture: labels must have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.metrics.views import Outputs, View
from edgekit_converters.statistics import Floats

MOST_BOXES = 100
"""Of one picture, the best ones; as many as the COCO evaluation looks at."""

_LEAST_SCORE = 0.01
_CANDIDATES = 300
_SAME_IOU = 0.65


@dataclass(frozen=True)
class Boxes:
    """The boxes of one picture, best first.

    Attributes:
        corners: [k, 4], x1, y1, x2, y2.
        scores: [k], 0 to 1.
        classes: int [k].
    """

    corners: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def at(self, which: NDArray[Any]) -> Boxes:
        """Those at these positions, or where a mask is true."""
        return Boxes(self.corners[which], self.scores[which], self.classes[which])


def read(view: View, outputs: Outputs) -> list[Boxes]:
    """The boxes of each picture, at most `MOST_BOXES`."""
    first = outputs[view.output]
    if view.layout in ("separate", "separate_yx"):
        scores, classes = (outputs[name] for name in view.others)
        order = [1, 0, 3, 2] if view.layout == "separate_yx" else [0, 1, 2, 3]
        rows = zip(first[..., order], scores, classes, strict=True)
        return [_sorted(*row) for row in rows]
    if view.layout == "rows":
        return [_sorted(rows[:, :4], rows[:, 4], rows[:, 5]) for rows in first]
    if view.layout == "anchors_last":
        return [_suppressed(anchors[:4].T, anchors[4:].T) for anchors in first]
    return [_suppressed(a[:, :4], a[:, 4:5] * a[:, 5:]) for a in first]


def labelled(labels: NDArray[Any]) -> list[Boxes]:
    """True boxes from labels [n, m, 5] (x1, y1, x2, y2, class); negative classes are padding."""
    found = []
    for rows in labels:
        real = rows[rows[:, 4] >= 0]
        classes = real[:, 4].astype(np.int64)
        found.append(Boxes(real[:, :4].astype(np.float64), np.ones(len(real)), classes))
    return found


def ious(a: Floats, b: Floats) -> Floats:
    """Intersection over union [k, l] of corners [k, 4] and [l, 4]; 0 for empty boxes."""
    low = np.maximum(a[:, np.newaxis, :2], b[np.newaxis, :, :2])
    high = np.minimum(a[:, np.newaxis, 2:], b[np.newaxis, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    either = _areas(a)[:, np.newaxis] + _areas(b)[np.newaxis] - both
    shared: Floats = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    return shared


def _areas(corners: Floats) -> Floats:
    areas: Floats = np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(axis=1)
    return areas


def _sorted(corners: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any]) -> Boxes:
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0][:MOST_BOXES]
    return Boxes(
        corners[order].astype(np.float64),
        scores[order].astype(np.float64),
        classes[order].astype(np.int64),
    )


def _suppressed(centred: NDArray[Any], by_class: NDArray[Any]) -> Boxes:
    """Boxes of raw anchors: of those that overlap in one class, the best."""
    classes = by_class.argmax(axis=1)
    scores = by_class[np.arange(len(by_class)), classes].astype(np.float64)
    order = np.argsort(-scores, kind="stable")[:_CANDIDATES]
    order = order[scores[order] >= _LEAST_SCORE]
    centre, half = centred[order, :2].astype(np.float64), centred[order, 2:4] / 2.0
    found = Boxes(np.hstack([centre - half, centre + half]), scores[order], classes[order])
    same = ious(found.corners, found.corners) > _SAME_IOU
    same &= found.classes[:, np.newaxis] == found.classes[np.newaxis]
    kept = np.ones(len(order), bool)
    for i in range(len(order)):
        if kept[i]:
            kept[i + 1 :] &= ~same[i, i + 1 :]
    return found.at(np.flatnonzero(kept)[:MOST_BOXES])
