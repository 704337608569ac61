"""Boxes: what detectors write, read into one form.

| layout | outputs |
|---|---|
| rows | [n, m, 6]: x1, y1, x2, y2, score, class; rows without a score are padding |
| anchors_last | [n, 4 + c, anchors] (YOLOv8 and later): centre x, y, width, height, class scores |
| anchors_first | [n, anchors, 5 + c] (YOLOv5): the same, with an object's score before those |
| separate | corners [n, m, 4], scores [n, m], classes [n, m]; `separate_yx` writes y before x |

Where the recipe's postprocess has a step `boxes`, that step says how they are read, and the board's
own code reads them. Scores are probabilities, after the sigmoid. Raw anchors go through non-maximum
suppression, class by class. Corners keep their unit, pixels or shares of the input: labels must
have the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edgekit.steps import Boxes as Step
from edgekit_converters.metrics.views import Outputs, View
from edgekit_converters.statistics import Floats
from edgekit_runtime.pipeline import detect

MOST_BOXES = 100
"""Of one picture, the best ones; as many as the COCO evaluation looks at."""

_LEAST_SCORE = 0.01
_ANCHORS_LAST = Step(family="yolov8", iou_threshold=0.65, max_detections=MOST_BOXES)
_ANCHORS_FIRST = replace(_ANCHORS_LAST, family="yolov5")


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
    if view.step is not None:
        return _detected(view.step, outputs)
    first = outputs[view.output]
    if view.layout in ("separate", "separate_yx"):
        scores, classes = (outputs[name] for name in view.others)
        order = [1, 0, 3, 2] if view.layout == "separate_yx" else [0, 1, 2, 3]
        rows = zip(first[..., order], scores, classes, strict=True)
        return [_sorted(*row) for row in rows]
    if view.layout == "rows":
        return [_sorted(rows[:, :4], rows[:, 4], rows[:, 5]) for rows in first]
    step = _ANCHORS_LAST if view.layout == "anchors_last" else _ANCHORS_FIRST
    return _detected(step, {view.output: first})


def labelled(labels: NDArray[Any]) -> list[Boxes]:
    """True boxes from labels [n, m, 5] (x1, y1, x2, y2, class); negative classes are padding."""
    found = []
    for rows in labels:
        real = rows[rows[:, 4] >= 0]
        classes = real[:, 4].astype(np.int64)
        found.append(Boxes(real[:, :4].astype(np.float64), np.ones(len(real)), classes))
    return found


def _sorted(corners: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any]) -> Boxes:
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0][:MOST_BOXES]
    return Boxes(
        corners[order].astype(np.float64),
        scores[order].astype(np.float64),
        classes[order].astype(np.int64),
    )


def _detected(step: Step, outputs: Outputs) -> list[Boxes]:
    """Boxes as the board chooses them, but also those that it would leave off for their score."""
    step = replace(step, score_threshold=min(step.score_threshold, _LEAST_SCORE))
    pictures = len(next(iter(outputs.values())))
    # Labels are in the unit that the model writes, so shares of the input stay shares.
    return [
        Boxes(one.boxes.astype(np.float64), one.scores.astype(np.float64), one.classes)
        for one in detect(step, outputs, [(1, 1)] * pictures)
    ]
