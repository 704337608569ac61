"""Segmentation: mean intersection over union of masks, over all samples together.

Intersections and unions are summed over the samples and then divided, class by class, as in the
PASCAL VOC challenge (Everingham et al., International Journal of Computer Vision 111, 2015); a
class that neither model nor truth has does not count. Pixels whose label is negative are ignored.
Without labels the truth is the float source's own mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit_converters.metrics.classification import threshold
from edgekit_converters.metrics.scoring import Case, ClassTally, MeanRatio, Measure, Scored
from edgekit_converters.metrics.views import View
from edgekit_converters.statistics import Floats

Mask = NDArray[np.int64]
Reader = Callable[[NDArray[Any]], Mask]


def overlaps(truth: Mask, mask: Mask, classes: int) -> tuple[Floats, Floats]:
    """Pixels of each class in both masks and in either, [classes]; negative truth is ignored."""
    counts = truth >= 0
    truth, mask = truth[counts], mask[counts]
    both = np.bincount(truth[truth == mask], minlength=classes).astype(np.float64)
    sizes = np.bincount(truth, minlength=classes) + np.bincount(mask, minlength=classes)
    return both, sizes - both


def _score(case: Case) -> Scored:
    before, after = case.source[case.view.output], case.artefact[case.view.output]
    read = reader(case.view, before)
    labels = case.labels if _is_masks(case.labels) else None
    if labels is not None:
        _check(case, labels, read(before[0]).shape)
    classes = _class_count(case, labels)
    changed = np.zeros(case.samples)
    # Both, either: of the artefact, then of the source; and what the truth holds.
    found = np.zeros((5, case.samples, classes))
    # Masks are made one by one, as scores are many times larger.
    for i in range(case.samples):
        own = read(before[i])
        truth = own if labels is None else labels[i].astype(np.int64)
        mask = read(after[i])
        changed[i] = (mask != own).mean()
        found[0:2, i] = overlaps(truth, mask, classes)
        found[2:4, i] = overlaps(truth, own, classes)
        found[4, i] = np.bincount(truth[truth >= 0], minlength=classes)
    part, whole, own_part, own_whole, truths = found
    return Scored(
        reference="float" if labels is None else "labels",
        source=MeanRatio(own_part, own_whole),
        artefact=MeanRatio(part, whole),
        unlike=changed,
        classes={
            label: ClassTally(
                which=np.flatnonzero(truths[:, label]),
                source=MeanRatio(own_part[:, [label]], own_whole[:, [label]]),
                artefact=MeanRatio(part[:, [label]], whole[:, [label]]),
            )
            for label in np.flatnonzero(truths.any(axis=0)).tolist()
        },
    )


def reader(view: View, source: NDArray[Any]) -> Reader:
    """From one sample's output to its mask; a threshold is that of the float source."""
    if view.axis == 0:
        return lambda sample: sample.reshape(_picture(sample.shape)).astype(np.int64)
    axis = view.axis - 1
    if source.shape[view.axis] == 1:
        limit = threshold(source)
        return lambda sample: (sample.squeeze(axis) > limit).astype(np.int64)
    return lambda sample: sample.argmax(axis=axis).astype(np.int64)


def _picture(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 2:
        return shape
    return shape[1:] if shape[0] == 1 else shape[:-1]


def _is_masks(labels: NDArray[Any] | None) -> bool:
    return labels is not None and labels.ndim == 3 and labels.dtype.kind in "iu"


def _class_count(case: Case, labels: NDArray[Any] | None) -> int:
    """How many classes there are: as many as the model has scores, or as its masks show."""
    before, after = case.source[case.view.output], case.artefact[case.view.output]
    if case.view.axis == 0:
        return 1 + max(int(a.max(initial=0)) for a in (before, after, labels) if a is not None)
    classes = max(int(before.shape[case.view.axis]), 2)
    most = 0 if labels is None else int(labels.max(initial=0))
    if most >= classes:
        raise DataError(
            f"metric {case.name}: label masks hold {most}, the model has classes 0 to"
            f" {classes - 1}",
            hint="mark pixels that do not count by a negative label",
        )
    return classes


def _check(case: Case, labels: NDArray[Any], shape: tuple[int, ...]) -> None:
    if labels.shape[1:] != shape:
        raise DataError(
            f"metric {case.name}: label masks are {list(labels.shape[1:])}, output"
            f" {case.view.output!r} gives {list(shape)}",
            hint="resize the masks, without interpolation, to what the model gives",
        )
    if not (labels >= 0).any():
        raise DataError(
            f"metric {case.name}: the label masks of {len(labels)} evaluation samples hold no pixel"
            " that counts",
            hint="a negative label is ignored; give samples with others",
        )


IOU = Measure(_score, kinds=("masks",))
