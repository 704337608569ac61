"""Boxes: what a detector found on each picture, chosen from what it wrote.

Work is bounded whatever a model writes: at most `CANDIDATES` boxes of a picture are decoded and
compared, those of the best scores. Numbers that are none are never a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError
from edgekit.steps import Boxes, Corners
from edgekit_runtime.pipeline.families import (
    Outputs,
    Raw,
    decoded_ssd,
    priors,
    read,
    to_xyxy,
)
from edgekit_runtime.pipeline.scores import activated
from edgekit_runtime.pipeline.suppress import suppressed

CANDIDATES = 1000
"""Boxes of a picture that suppression looks at."""

_MOST_CLASSES = 1 << 31


class Found(NamedTuple):
    """The boxes of one picture, best first.

    Attributes:
        boxes: float32 [k, 4], x1, y1, x2, y2.
        scores: float32 [k].
        classes: int64 [k].
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def detect(step: Boxes, outputs: Outputs, sizes: Sequence[tuple[int, int]]) -> list[Found]:
    """The boxes of each picture.

    Args:
        outputs: of the model, by name, axis 0 counting pictures.
        sizes: (width, height) of each picture's input, in pixels.

    Returns:
        Boxes in pixels of the input. Where the model writes pixels, they are not looked at.

    Raises:
        EngineError: the outputs are not what the step's family takes.
        RecipeError: the step does not say which of several outputs it means.
    """
    raw = read(step, outputs)
    if len(raw.boxes) != len(sizes):
        raise EngineError(f"postprocess: {len(raw.boxes)} answers to {len(sizes)} pictures")
    if step.family == "ssd" and len(priors(step.priors)) != raw.boxes.shape[1]:
        raise EngineError(
            f"postprocess: the model has {raw.boxes.shape[1]} anchors, boxes has"
            f" {len(priors(step.priors))} priors",
            hint="correct priors in the step",
        )
    # Boxes of infinite numbers are dropped, and need no warning.
    with np.errstate(invalid="ignore", over="ignore"):
        return [_of_picture(step, raw, i, size) for i, size in enumerate(sizes)]


def _of_picture(step: Boxes, raw: Raw, i: int, size: tuple[int, int]) -> Found:
    at, scores, classes = _candidates(step, raw, i)
    numbers = raw.boxes[i][at].astype(np.float32)
    if step.family == "ssd":
        boxes = decoded_ssd(numbers, at, step)
    else:
        own: Corners = "xyxy" if step.family in ("decoded", "rows") else "cxcywh"
        boxes = to_xyxy(numbers, step.corners or own)
    if step.normalized or step.family == "ssd":
        boxes = boxes * np.array([*size, *size], np.float32)
    real = np.isfinite(boxes).all(axis=1)
    boxes, scores, classes = boxes[real], scores[real], classes[real]
    if step.iou_threshold is None:
        kept: Any = slice(step.max_detections)
    else:
        alike = np.zeros_like(classes) if step.class_agnostic else classes
        kept = suppressed(boxes, alike, iou_threshold=step.iou_threshold, most=step.max_detections)
    return Found(boxes[kept], scores[kept], classes[kept])


def _candidates(
    step: Boxes, raw: Raw, i: int
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.int64]]:
    """Anchors over the threshold, best first, each with its score and class."""
    count = raw.boxes.shape[1] if raw.counts is None else max(int(raw.counts[i]), 0)
    if raw.classes is not None:
        best = activated(raw.scores[i][:count], step.activation)
        at = _best(best, step.score_threshold)
        known = raw.classes[i][at].astype(np.float64)
        at = at[(known >= 0) & (known < _MOST_CLASSES)]
        return at, best[at], np.rint(raw.classes[i][at]).astype(np.int64)
    scores = raw.scores[i][:count]
    at = np.arange(len(scores))
    if raw.objects is not None:
        # A score of at most 1 cannot lift what is no object over the threshold.
        objects = activated(raw.objects[i], step.activation)
        at = np.flatnonzero(objects >= step.score_threshold)
        scores = activated(scores[at], step.activation) * objects[at, np.newaxis]
    elif step.activation == "sigmoid":
        # It keeps the order, so that the best class is known without it.
        at = np.flatnonzero(activated(scores.max(axis=1), "sigmoid") >= step.score_threshold)
        scores = activated(scores[at], "sigmoid")
    else:
        scores = activated(scores, step.activation)
    if step.background is not None:
        scores = np.delete(scores, step.background, axis=1)
    if step.multi_label:
        flat = _best(scores.reshape(-1), step.score_threshold)
        return at[flat // scores.shape[1]], scores.flat[flat], flat % scores.shape[1]
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    order = _best(best, step.score_threshold)
    return at[order], best[order], classes[order].astype(np.int64)


def _best(scores: NDArray[np.float32], threshold: float) -> NDArray[np.intp]:
    """Positions of scores from the threshold on, best first; equal ones in their order."""
    over = np.flatnonzero((scores >= threshold) & np.isfinite(scores))
    return over[np.argsort(-scores[over], kind="stable")[:CANDIDATES]]
