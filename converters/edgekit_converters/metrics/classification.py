"""Classification: is the class of a sample right, and is it the float source's?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit_converters.metrics.scoring import (
    Case,
    ClassTally,
    Mean,
    Measure,
    Outputs,
    Scored,
    of_samples,
    require_labels,
)
from edgekit_converters.metrics.views import View, is_class_labels
from edgekit_converters.statistics import Floats

Classes = NDArray[np.int64]

_TOP = 5


def answers(view: View, source: Outputs, artefact: Outputs) -> tuple[Classes, Classes] | None:
    """The class [n] that each model gives; None where the answer is no class.

    Texts are numbered in their order, so that equal texts have equal numbers.
    """
    if view.kind not in ("classes", "index", "binary"):
        return None
    before, after = source[view.output], artefact[view.output]
    if view.kind == "classes":
        return _best(before), _best(after)
    if view.kind == "binary":
        limit = threshold(before)
        return _above(before, limit), _above(after, limit)
    before, after = before.reshape(len(before)), after.reshape(len(after))
    if before.dtype.kind in "biu":
        return before.astype(np.int64), after.astype(np.int64)
    _, numbers = np.unique(np.concatenate([before, after]).astype(str), return_inverse=True)
    return numbers[: len(before)].astype(np.int64), numbers[len(before) :].astype(np.int64)


def threshold(scores: NDArray[Any]) -> float:
    """Above which a score means yes: .5 for probabilities, 0 for logits."""
    return 0.5 if scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1 else 0.0


def equal(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """1 where two answers [n] are the same, else 0."""
    same: Floats = np.equal(a, b).astype(np.float64)
    return same


def by_class(
    labels: NDArray[Any] | None, found: tuple[Classes, Classes] | None
) -> Mapping[int, ClassTally]:
    """The share of right answers for each label."""
    if labels is None or found is None or not is_class_labels(labels):
        return {}
    before, after = equal(found[0], labels), equal(found[1], labels)
    tallies = {}
    for label in np.unique(labels).tolist():
        which = np.flatnonzero(labels == label)
        tallies[label] = ClassTally(which, Mean(before, which), Mean(after, which))
    return tallies


def _score_top1(case: Case) -> Scored:
    labels = _class_labels(case)
    before, after = _required(case)
    return of_samples("labels", equal(after, labels), equal(before, labels))


def _score_top5(case: Case) -> Scored:
    labels = _class_labels(case)
    before, after = case.source[case.view.output], case.artefact[case.view.output]
    if before.shape[1] <= _TOP:
        raise RecipeError(
            f"metric {case.name}: {before.shape[1]} classes are always among the first {_TOP}",
            hint="use metric: top1",
        )
    return of_samples("labels", _among_first(after, labels), _among_first(before, labels))


def _score_agreement(case: Case) -> Scored:
    before, after = _required(case)
    return of_samples("float", equal(after, before))


def _required(case: Case) -> tuple[Classes, Classes]:
    found = answers(case.view, case.source, case.artefact)
    assert found is not None
    return found


def _class_labels(case: Case) -> NDArray[Any]:
    labels = require_labels(case, instead="agreement")
    if not is_class_labels(labels):
        raise RecipeError(
            f"metric {case.name} needs one class a sample; labels are {labels.dtype}"
            f" {list(labels.shape)}",
            hint="store labels as integers [n], or use another metric",
        )
    if case.view.kind == "index" and case.source[case.view.output].dtype.kind not in "biu":
        raise RecipeError(
            f"metric {case.name} cannot compare labels with output {case.view.output!r}: it holds"
            " texts",
            hint="use metric: agreement",
        )
    return labels


def _best(scores: NDArray[Any]) -> Classes:
    best: Classes = scores.argmax(axis=1).astype(np.int64)
    return best


def _above(scores: NDArray[Any], limit: float) -> Classes:
    above: Classes = (scores.reshape(len(scores)) > limit).astype(np.int64)
    return above


def _among_first(scores: NDArray[Any], labels: NDArray[Any]) -> Floats:
    # Of equal scores the lower class comes first, as for the best one.
    first = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :_TOP]
    among: Floats = (first == labels[:, np.newaxis]).any(axis=1).astype(np.float64)
    return among


TOP1 = Measure(_score_top1, kinds=("classes", "index", "binary"))
TOP5 = Measure(_score_top5, kinds=("classes",))
AGREEMENT = Measure(_score_agreement, kinds=("classes", "index", "binary"))
