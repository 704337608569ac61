"""Labels: checked against the answers of the model before any figure is believed.

A class that the model does not have, or labels that no metric would look at, would otherwise turn
into a figure that looks like accuracy and is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.steps import PostStep
from edgekit_converters import metrics
from edgekit_converters.data import Parts
from edgekit_converters.metrics.scoring import Case


def check(
    parts: Parts,
    golden: Mapping[str, NDArray[Any]],
    *,
    metric: str | None,
    what: str,
    post: Sequence[PostStep] = (),
) -> None:
    """Hold the labels of all parts against the source's answers to the golden samples.

    Args:
        golden: these answers by output, axis 0 counting samples.
        metric: from the recipe; one that is named there may leave labels aside.
        what: the data, for messages.
        post: the recipe's postprocess.

    Raises:
        DataError: a label is no class of the model, or the labels fit no output.
        RecipeError: the metric does not fit the model.
    """
    labels = parts.golden.labels
    name, measure, view = metrics.choose(metric, golden, labels, post)
    if view.kind == "classes":
        check_classes(parts, golden[view.output].shape[view.axis], what=what)
    if labels is None or metric is not None:
        return
    if measure.score(Case(name, view, golden, golden, labels)).reference != "labels":
        outputs = ", ".join(f"{output!r} {_shape(array)}" for output, array in golden.items())
        raise DataError(
            f"{what}: labels {labels.dtype} {_shape(labels)} fit no output of the model: {outputs}",
            hint="classes are integers [n], targets are floats of an output's shape; to compare"
            f" with the float model alone, leave labels out or set metric: {name} in the recipe",
        )


def check_classes(parts: Parts, classes: int, *, what: str) -> None:
    """Raise `DataError` for a class, among integer labels [n], that a classifier does not have."""
    for part in (parts.golden, parts.calibration, parts.selection, parts.evaluation):
        labels = None if part is None else part.labels
        if labels is None or labels.ndim != 1 or labels.dtype.kind != "i":
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise DataError(
                f"{what}: labels hold {wrong}, the model has classes 0 to {classes - 1}",
                hint="labels are positions in the model's output",
            )


def _shape(array: NDArray[Any]) -> str:
    return f"[{', '.join(['n', *map(str, array.shape[1:])])}]"
