"""Detection: mean average precision of boxes, and agreement with the float source's boxes.

`map50` and `map` follow the COCO evaluation (Lin et al., "Microsoft COCO: Common Objects in
Context", ECCV 2014): boxes are matched best score first, each to the free true box of its class
that it overlaps most; precision is made monotone and read at 101 recalls; the mean is over classes
that occur, and for `map` over overlaps .50 to .95. There are no crowds and no size classes.

`box_agreement` needs no labels: on each picture the share of boxes, of both models together, that
have a partner of the same class and an IoU of at least .5 in the other model. A box counts from a
score of .25; its partner may have half of that, so that a box near the threshold is not lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, RecipeError
from edgekit_converters.metrics.boxes import Boxes, labelled, read
from edgekit_converters.metrics.scoring import (
    Case,
    ClassTally,
    Measure,
    Scored,
    mean_known,
    of_samples,
    require_labels,
)
from edgekit_converters.statistics import Floats
from edgekit_runtime.pipeline import ious

_STEPS = 100
_ROUNDING = 1e-9
SURE = 0.25
"""The score from which a box counts where two models are compared."""

_HALF = (0.5,)
_COCO = tuple(np.linspace(0.5, 0.95, 10).tolist())
# A draw sorts every box anew; the quantiles of this many are steady enough for an interval.
_DRAWS = 200


@dataclass(frozen=True)
class ClassPrecision:
    """The boxes of one class in all pictures, best first.

    Attributes:
        picture: int [k], where each box was found.
        right: [overlaps, k], whether it is matched to a true box.
        truths: [n], true boxes in each picture.
    """

    picture: NDArray[np.intp]
    right: NDArray[np.bool_]
    truths: Floats
    draws: int = _DRAWS

    def value(self, weights: Floats) -> Floats:
        """Average precision [d], meaned over the overlaps; NaN where no true box counts."""
        total = weights @ self.truths
        counts = weights[:, self.picture]
        seen = counts.cumsum(axis=1)
        parts = [_average((counts * right).cumsum(axis=1), seen, total) for right in self.right]
        mean: Floats = np.mean(parts, axis=0)
        return np.where(total > 0, mean, np.nan)


@dataclass(frozen=True)
class MeanPrecision:
    """The mean of average precisions over classes that occur."""

    classes: tuple[ClassPrecision, ...]
    draws: int = _DRAWS

    def value(self, weights: Floats) -> Floats:
        return mean_known(np.stack([part.value(weights) for part in self.classes], axis=1))


def precisions(
    truths: list[Boxes], found: list[Boxes], overlaps: tuple[float, ...]
) -> dict[int, ClassPrecision]:
    """What average precision is made of, for each class of the truth."""
    classes = np.unique(np.concatenate([boxes.classes for boxes in truths])).tolist()
    return {label: _of_class(label, truths, found, overlaps) for label in classes}


def partners(before: Boxes, after: Boxes) -> NDArray[np.bool_]:
    """Which boxes [k, l] of two models are one: one of them sure, and the other nearly so."""
    pairs = ious(before.corners, after.corners) >= _HALF[0]
    pairs &= before.classes[:, np.newaxis] == after.classes[np.newaxis]
    own, other = before.scores[:, np.newaxis], after.scores[np.newaxis]
    near: NDArray[np.bool_] = (np.minimum(own, other) >= SURE / 2) & (
        np.maximum(own, other) >= SURE
    )
    return pairs & near


def agreement(before: Boxes, after: Boxes) -> float:
    """The share of sure boxes of either model with a partner in the other; 1 without boxes."""
    pairs = partners(before, after)
    sure = [pairs[before.scores >= SURE], pairs.T[after.scores >= SURE]]
    total = sum(map(len, sure))
    return sum(int(rows.any(axis=1).sum()) for rows in sure) / total if total else 1.0


def _score(case: Case, overlaps: tuple[float, ...]) -> Scored:
    labels = require_labels(case, instead="box_agreement")
    if labels.ndim != 3 or labels.shape[2] != 5:
        raise RecipeError(
            f"metric {case.name} needs boxes as labels; they are {list(labels.shape)}",
            hint="store float labels [n, m, 5]: x1, y1, x2, y2, class; class -1 is padding",
        )
    truths = labelled(labels)
    if not any(len(boxes.classes) for boxes in truths):
        raise DataError(
            f"metric {case.name}: the labels of {len(truths)} evaluation samples hold no box",
            hint="a class below 0 is padding; give samples with boxes",
        )
    own, found = read(case.view, case.source), read(case.view, case.artefact)
    before, after = precisions(truths, own, overlaps), precisions(truths, found, overlaps)
    return Scored(
        reference="labels",
        unlike=_unlike(own, found),
        source=MeanPrecision(tuple(before.values())),
        artefact=MeanPrecision(tuple(after.values())),
        classes={
            label: ClassTally(np.flatnonzero(own.truths), own, after[label])
            for label, own in before.items()
        },
    )


def _score_agreement(case: Case) -> Scored:
    unlike = _unlike(read(case.view, case.source), read(case.view, case.artefact))
    return replace(of_samples("float", 1 - unlike), unlike=unlike)


def _unlike(own: list[Boxes], found: list[Boxes]) -> Floats:
    """The share of sure boxes without a partner, by picture."""
    return np.array([1 - agreement(a, b) for a, b in zip(own, found, strict=True)])


def _of_class(
    label: int, truths: list[Boxes], found: list[Boxes], overlaps: tuple[float, ...]
) -> ClassPrecision:
    pictures, scores, right, counts = [], [], [], []
    for picture, (truth, boxes) in enumerate(zip(truths, found, strict=True)):
        own = truth.at(truth.classes == label)
        mine = boxes.at(boxes.classes == label)
        counts.append(len(own.classes))
        pictures.append(np.full(len(mine.classes), picture))
        scores.append(mine.scores)
        right.append(_matched(mine, own, overlaps))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return ClassPrecision(
        picture=np.concatenate(pictures).astype(np.intp)[order],
        right=np.concatenate(right, axis=1)[:, order],
        truths=np.array(counts, np.float64),
    )


def _matched(boxes: Boxes, truth: Boxes, overlaps: tuple[float, ...]) -> NDArray[np.bool_]:
    """Whether each box, best first, is right at each overlap: [overlaps, k]."""
    least = np.array(overlaps)
    right = np.zeros((len(least), len(boxes.classes)), bool)
    if not len(truth.classes):
        return right
    rows = np.arange(len(least))
    free = np.ones((len(least), len(truth.classes)), bool)
    for k, overlap in enumerate(ious(boxes.corners, truth.corners)):
        open_ = np.where(free, overlap, -1.0)
        best = open_.argmax(axis=1)
        right[:, k] = open_[rows, best] >= least
        free[rows, best] &= ~right[:, k]
    return right


def _average(hits: Floats, seen: Floats, total: Floats) -> Floats:
    """Average precision [d] from hits and boxes, cumulated best score first, [d, k].

    A recall of i / 100 is read where it is first reached: each box counts for the recalls that its
    hits add.
    """
    if not hits.shape[1]:
        return np.zeros(len(hits))
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recalls = _STEPS * hits / np.maximum(total, 1.0)[:, np.newaxis]
    reached = np.diff(np.floor(recalls + _ROUNDING), axis=1, prepend=-1.0)
    average: Floats = (reached * precision).sum(axis=1) / (_STEPS + 1)
    return average


MAP50 = Measure(lambda case: _score(case, _HALF), kinds=("boxes",))
MAP = Measure(lambda case: _score(case, _COCO), kinds=("boxes",))
BOX_AGREEMENT = Measure(_score_agreement, kinds=("boxes",))
