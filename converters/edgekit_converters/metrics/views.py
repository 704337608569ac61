"""Views: which output of a model holds its answer, and what kind of answer that is.

Pure functions over names, shapes and datatypes, and over labels where there are some. Shapes alone
do not tell everything: [n, d] may be an embedding, [n, t, c] hidden states. What cannot be told is
taken as plain values, unless the labels or the metric in the recipe say otherwise.

| kind | outputs |
|---|---|
| classes | float or 8-bit scores [n, c]: the first output, or beside a first one of indices |
| index | integers or texts [n] or [n, 1] alone: a class, without scores |
| binary | one float [n] or [n, 1], where labels are 0 and 1: above .5, or above 0 for logits |
| masks | scores [n, c, h, w] or [n, h, w, c], one probability [n, 1, h, w], or integers [n, h, w] |
| sequences | scores [n, t, c] whose last axis is a distribution, or integers [n, t] |
| boxes | see `edgekit_converters.metrics.boxes` |
| values | everything else: all outputs, as numbers |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.steps import Boxes

Kind = Literal["classes", "index", "binary", "masks", "sequences", "boxes", "values"]
Layout = Literal["rows", "anchors_last", "anchors_first", "separate", "separate_yx"]
Outputs = Mapping[str, NDArray[Any]]
Labels = NDArray[Any] | None

KINDS: tuple[Kind, ...] = ("boxes", "classes", "index", "binary", "masks", "sequences", "values")

_LEAST_PICTURE = 16
_IMAGE_CHANNELS = 3
_LABEL_COLUMNS = 5
# Rows that are looked at to tell a distribution from other numbers.
_LOOK = 32


@dataclass(frozen=True)
class View:
    """Where an answer lies.

    Attributes:
        output: the output that holds it; the first of several for boxes, "" for values.
        axis: of the class scores; 0 where the numbers are the answer themselves.
        layout: how boxes are written.
        others: for boxes in separate outputs, those of scores and classes.
        step: of the recipe's postprocess, which says how boxes are read.
    """

    kind: Kind
    output: str = ""
    axis: int = 0
    layout: Layout | None = None
    others: tuple[str, ...] = ()
    step: Boxes | None = None


def recognise(outputs: Outputs, labels: Labels = None) -> View:
    """The answer of a model as its outputs and labels show it; values where they do not."""
    found = (view_as(kind, outputs, labels, asked=False) for kind in KINDS)
    return next(view for view in found if view is not None)


def view_as(kind: Kind, outputs: Outputs, labels: Labels, *, asked: bool) -> View | None:
    """The outputs as one kind of answer; None where they cannot be that.

    Args:
        asked: the recipe's metric asks for this kind, so that a shape which could be it is it.
    """
    if kind == "classes":
        return _classes(outputs, labels, asked=asked)
    if kind == "index":
        name, first = _first(outputs)
        return View("index", name) if _is_index(first) else None
    if kind == "binary":
        return _binary(outputs, labels, asked=asked)
    if kind == "masks":
        return _masks(outputs, labels, asked=asked)
    if kind == "sequences":
        return _sequences(outputs, labels, asked=asked)
    if kind == "boxes":
        return _boxes(outputs, labels, asked=asked)
    return View("values")


def is_class_labels(labels: Labels) -> bool:
    """Whether labels are one class a sample."""
    return labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"


def _classes(outputs: Outputs, labels: Labels, *, asked: bool) -> View | None:
    if labels is not None and not is_class_labels(labels) and not asked:
        return None
    name, first = _first(outputs)
    if _is_scores(first):
        return View("classes", name, axis=1)
    if not _is_index(first):
        return None
    beside = (other for other, array in outputs.items() if _is_scores(array))
    return next((View("classes", other, axis=1) for other in beside), None)


def _binary(outputs: Outputs, labels: Labels, *, asked: bool) -> View | None:
    name, first = _first(outputs)
    if first.dtype.kind != "f" or first.shape[1:] not in ((), (1,)):
        return None
    if labels is None:
        return View("binary", name) if asked else None
    zero_or_one = is_class_labels(labels) and bool(((labels == 0) | (labels == 1)).all())
    return View("binary", name) if zero_or_one else None


def _masks(outputs: Outputs, labels: Labels, *, asked: bool) -> View | None:
    name, first = _first(outputs)
    labelled = labels is not None and labels.ndim == 3 and labels.dtype.kind in "iu"
    if first.dtype.kind in "iu" and (
        first.ndim == 3 or (first.ndim == 4 and 1 in (first.shape[1], first.shape[3]))
    ):
        return View("masks", name)
    if first.ndim != 4 or first.dtype.kind != "f":
        return None
    # Classes come first, unless the last axis alone is short enough to count them.
    axis = 3 if first.shape[3] < min(first.shape[1:3]) else 1
    if labelled and labels is not None:
        for candidate in (1, 3):
            if np.delete(first.shape, candidate)[1:].tolist() == list(labels.shape[1:]):
                axis = candidate
    if labelled or asked:
        return View("masks", name, axis=axis)
    channels = first.shape[axis]
    large = min(np.delete(first.shape, axis)[1:]) >= _LEAST_PICTURE
    # One channel is a map of something, three may be a picture.
    plain = len(outputs) > 1 or channels in (1, _IMAGE_CHANNELS)
    return View("masks", name, axis=axis) if large and not plain else None


def _sequences(outputs: Outputs, labels: Labels, *, asked: bool) -> View | None:
    name, first = _first(outputs)
    if first.dtype.kind in "iu" and first.ndim == 2 and first.shape[1] > 1:
        # Beside numbers they are what a text model was given, passed through.
        numbers = any(array.dtype.kind == "f" for array in outputs.values())
        return None if numbers and not asked else View("sequences", name)
    steps = _without_unit_axes(first)
    if first.dtype.kind != "f" or steps.ndim != 3:
        return None
    labelled = labels is not None and labels.ndim == 2 and labels.dtype.kind in "iu"
    if labelled or asked or _is_distribution(steps):
        return View("sequences", name, axis=2)
    return None


def _boxes(outputs: Outputs, labels: Labels, *, asked: bool) -> View | None:
    labelled = (
        labels is not None
        and labels.ndim == 3
        and labels.shape[2] == _LABEL_COLUMNS
        and labels.dtype.kind == "f"
    )
    if (separate := _separate_boxes(outputs)) is not None:
        return separate
    name, first = _first(outputs)
    if first.ndim != 3 or first.dtype.kind != "f":
        return None
    _, rows, columns = first.shape
    if columns == 6 and _is_rows(first):
        return View("boxes", name, layout="rows")
    if not (labelled or asked):
        return None
    if 5 <= rows < columns:
        return View("boxes", name, layout="anchors_last")
    return View("boxes", name, layout="anchors_first") if columns >= 6 else None


def _separate_boxes(outputs: Outputs) -> View | None:
    """Corners [n, m, 4], scores [n, m] and whole-numbered classes [n, m] in outputs of their own.

    With a fourth output, the count, they are those of TFLite's detection operator, which writes y
    before x.
    """
    corners = [k for k, a in outputs.items() if a.ndim == 3 and a.shape[2] == 4]
    if not corners:
        return None
    flat = {k: a for k, a in outputs.items() if a.shape == outputs[corners[0]].shape[:2]}
    whole = [k for k, a in flat.items() if _are_whole(a)]
    scores = [k for k, a in flat.items() if a.dtype.kind == "f" and not _are_whole(a)]
    if not whole or not scores:
        return None
    layout: Layout = "separate_yx" if len(outputs) > 3 else "separate"
    return View("boxes", corners[0], layout=layout, others=(scores[0], whole[0]))


def _first(outputs: Outputs) -> tuple[str, NDArray[Any]]:
    return next(iter(outputs.items()))


def _is_scores(array: NDArray[Any]) -> bool:
    kind = array.dtype.kind
    in_eight_bits = kind in "iu" and array.dtype.itemsize == 1
    return array.ndim == 2 and array.shape[1] > 1 and (kind == "f" or in_eight_bits)


def _is_index(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "biuOSU" and array.shape[1:] in ((), (1,))


def _is_rows(array: NDArray[Any]) -> bool:
    """Whether rows can be x1, y1, x2, y2, score, class."""
    rows = array[array[..., 4] > 0]
    ordered = bool((rows[:, 2:4] >= rows[:, :2]).all())
    return len(rows) > 0 and ordered and _are_whole(rows[:, 5])


def _are_whole(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "iu" or bool((array == np.round(array)).all())


def _is_distribution(array: NDArray[Any]) -> bool:
    """Whether the last axis holds probabilities, or their logarithms."""
    seen = array[:_LOOK].astype(np.float64)
    if seen.shape[-1] < 2:
        return False
    if seen.min(initial=0.0) < 0 and seen.max(initial=0.0) <= 1e-3:
        seen = np.exp(seen)
    return bool(seen.min(initial=0.0) >= 0 and np.allclose(seen.sum(axis=-1), 1, atol=1e-2))


def _without_unit_axes(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(len(array), *(size for size in array.shape[1:] if size > 1))
