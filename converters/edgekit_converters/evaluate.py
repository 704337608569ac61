"""Evaluate: how far an artefact's answers are from the source's, and from the truth where known.

Figures are means over samples; their intervals come from a bootstrap that draws whole groups, as
samples of one group (crops of one photograph) are not independent (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapters 8 and 13). The same outputs give the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit.structs import Strict
from edgekit_converters.data import Samples

MetricName = Literal["top1", "agreement", "mse", "cosine"]
Outputs = Mapping[str, NDArray[Any]]
Interval = tuple[float, float]

_DRAWS = 2000
_SEED = 95
_BINS = 40
_WORST = 8


class Metric(Strict, frozen=True, kw_only=True):
    """The metric that the budget's `accuracy_drop` is about.

    Attributes:
        value: of the artefact. `mse` is relative: divided by the variance of the source's output.
        float_value: of the source, on the same samples.
        ci95: 95 % interval of `value`.
    """

    name: MetricName
    value: float
    float_value: float = msgspec.field(name="float")
    ci95: Interval

    @property
    def drop(self) -> float:
        """How much worse the artefact is than the source; negative where it is better."""
        gap = self.float_value - self.value
        return -gap if self.name == "mse" else gap


class ClassChange(Strict, frozen=True, kw_only=True):
    """One class: how many samples, and the share that each model gets right."""

    label: int
    samples: int
    float_right: float
    right: float


class Worst(Strict, frozen=True, kw_only=True):
    """A sample on which the artefact is furthest from the source; `position` in evaluation."""

    position: int
    error: float
    float_answer: int | None
    answer: int | None
    label: int | None


class Evaluation(Strict, frozen=True, kw_only=True):
    """What was found on the evaluation samples.

    Attributes:
        agreement: share of samples with the source's top answer; None for a model whose first
            output is not scores [n, classes].
        max_abs_error: largest difference in any output of any sample.
        scale: root mean square of the source's outputs, to read errors by.
        finite: whether every output is a number.
        errors: counts of the largest absolute error of a sample, in equal bins up to the largest.
        confidences: for classifiers, each sample's probability of the source's top answer, by the
            source and by the artefact.
    """

    samples: int
    agreement: float | None
    agreement_ci95: Interval | None
    metric: Metric
    max_abs_error: float
    scale: float
    finite: bool
    errors: tuple[int, ...]
    classes: tuple[ClassChange, ...] = ()
    confidences: tuple[tuple[float, float], ...] = ()
    worst: tuple[Worst, ...] = ()


def evaluate(
    reference: Outputs, outputs: Outputs, samples: Samples, *, metric: MetricName | None
) -> Evaluation:
    """Compare an artefact's outputs with the source's on the same samples.

    Args:
        reference: outputs of the source by name, axis 0 counting samples.
        outputs: outputs of the artefact, same names and shapes.
        samples: what both were given; its labels and groups count here.
        metric: what to judge by; None takes `top1` where there are labels, else `agreement` for
            classifiers and `cosine` for everything else.

    Raises:
        RecipeError: the metric needs labels or class scores, and there are none.
    """
    scores = class_scores(reference)
    name = metric or _default_metric(scores is not None, samples.labels is not None)
    per_sample = {n: _error_by_sample(reference[n], outputs[n]) for n in reference}
    error = np.max(np.stack(list(per_sample.values())), axis=0)
    finite = all(_finite(outputs[n]) for n in outputs)
    answers = float_answers = None
    if scores is not None:
        float_answers = reference[scores].argmax(axis=1)
        answers = outputs[scores].argmax(axis=1)
    agrees = None if answers is None or float_answers is None else _equal(answers, float_answers)
    top = float(error.max(initial=0.0)) if finite else float("inf")
    return Evaluation(
        samples=samples.count,
        agreement=None if agrees is None else float(agrees.mean()),
        agreement_ci95=None if agrees is None else bootstrap(agrees, samples.groups),
        metric=_metric(name, reference, outputs, samples, answers, float_answers),
        max_abs_error=top,
        scale=scale_of(reference),
        finite=finite,
        errors=tuple(np.histogram(error, _BINS, range=(0, top or 1.0))[0].tolist())
        if finite
        else (),
        classes=_classes(samples.labels, answers, float_answers),
        confidences=() if scores is None else _confidences(reference[scores], outputs[scores]),
        worst=_worst(error, samples.labels, answers, float_answers),
    )


def class_scores(outputs: Outputs) -> str | None:
    """The output that holds scores [n, classes] of a classifier: the first, with two axes."""
    name, first = next(iter(outputs.items()))
    is_scores = first.ndim == 2 and first.shape[1] > 1 and first.dtype.kind == "f"
    return name if is_scores else None


def scale_of(outputs: Outputs) -> float:
    """Root mean square over all outputs; what an error is small or large against."""
    squares = [np.square(array.astype(np.float64)).mean() for array in outputs.values()]
    return float(np.sqrt(np.mean(squares)))


def max_abs_error(reference: Outputs, outputs: Outputs) -> float:
    """The largest difference in any output; infinite where one of them is not a number."""
    return max(float(_error_by_sample(reference[n], outputs[n]).max()) for n in reference)


def bootstrap(values: NDArray[np.float64], groups: NDArray[np.int64]) -> Interval:
    """95 % interval of the mean of `values` [n], drawing groups [n] with replacement."""
    _, position = np.unique(groups, return_inverse=True)
    sums = np.bincount(position, weights=values)
    sizes = np.bincount(position)
    draws = np.random.default_rng(_SEED).integers(0, len(sums), (_DRAWS, len(sums)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _default_metric(is_classifier: bool, labelled: bool) -> MetricName:
    if not is_classifier:
        return "cosine"
    return "top1" if labelled else "agreement"


def _metric(
    name: MetricName,
    reference: Outputs,
    outputs: Outputs,
    samples: Samples,
    answers: NDArray[np.intp] | None,
    float_answers: NDArray[np.intp] | None,
) -> Metric:
    if name == "cosine":
        values, best = _mean_of(_cosine, reference, outputs), 1.0
    elif name == "mse":
        values, best = _mean_of(_relative_square, reference, outputs), 0.0
    elif answers is None or float_answers is None:
        raise RecipeError(
            f"metric {name} needs class scores [n, classes] as the first output",
            hint="use metric: cosine or mse in the recipe",
        )
    elif name == "agreement":
        values, best = _equal(answers, float_answers), 1.0
    elif samples.labels is None:
        raise RecipeError("metric top1 needs labels in the data", hint="use metric: agreement")
    else:
        values = _equal(answers, samples.labels)
        best = float(_equal(float_answers, samples.labels).mean())
    ci95 = bootstrap(values, samples.groups)
    return Metric(name=name, value=float(values.mean()), float_value=best, ci95=ci95)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    equal: NDArray[np.float64] = np.equal(a, b).astype(np.float64)
    return equal


def _mean_of(figure: Any, reference: Outputs, outputs: Outputs) -> NDArray[np.float64]:
    parts = [figure(_rows(reference[name]), _rows(outputs[name])) for name in reference]
    mean: NDArray[np.float64] = np.mean(np.stack(parts), axis=0)
    return mean


def _rows(array: NDArray[Any]) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = array.reshape(len(array), -1).astype(np.float64)
    return rows


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.abs(a).sum(axis=1) == 0) & (np.abs(b).sum(axis=1) == 0)
    dots = (a * b).sum(axis=1)
    cosine: NDArray[np.float64] = np.where(
        both_zero, 1.0, dots / np.where(lengths == 0, 1.0, lengths)
    )
    return cosine


def _relative_square(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    variance = float(a.var())
    relative: NDArray[np.float64] = np.square(a - b).mean(axis=1) / (variance or 1.0)
    return relative


def _error_by_sample(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    if a.dtype.kind not in "fiub":
        differs: NDArray[np.float64] = (a != b).reshape(len(a), -1).any(axis=1).astype(np.float64)
        return differs
    if a.size == 0:
        return np.zeros(len(a))
    gaps = np.abs(_rows(a) - _rows(b)).max(axis=1)
    wrong: NDArray[np.float64] = np.where(np.isnan(gaps), np.inf, gaps)
    return wrong


def _finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _classes(
    labels: NDArray[np.int64] | None,
    answers: NDArray[np.intp] | None,
    float_answers: NDArray[np.intp] | None,
) -> tuple[ClassChange, ...]:
    if labels is None or answers is None or float_answers is None:
        return ()
    return tuple(
        ClassChange(
            label=int(label),
            samples=int((labels == label).sum()),
            float_right=float((float_answers[labels == label] == label).mean()),
            right=float((answers[labels == label] == label).mean()),
        )
        for label in np.unique(labels)
    )


def _confidences(reference: NDArray[Any], outputs: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    rows = np.arange(len(reference))
    best = reference.argmax(axis=1)
    before, after = _probabilities(reference)[rows, best], _probabilities(outputs)[rows, best]
    pairs = zip(before.round(4).tolist(), after.round(4).tolist(), strict=True)
    return tuple(pairs)


def _probabilities(scores: NDArray[Any]) -> NDArray[np.float64]:
    values = scores.astype(np.float64)
    if values.min(initial=0) >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _worst(
    error: NDArray[np.float64],
    labels: NDArray[np.int64] | None,
    answers: NDArray[np.intp] | None,
    float_answers: NDArray[np.intp] | None,
) -> tuple[Worst, ...]:
    # A changed answer is worse than any difference in scores.
    changed = np.zeros(len(error)) if answers is None else (answers != float_answers)
    order = np.lexsort((-error, ~changed.astype(bool)))[:_WORST]
    return tuple(
        Worst(
            position=int(i),
            error=float(error[i]),
            float_answer=None if float_answers is None else int(float_answers[i]),
            answer=None if answers is None else int(answers[i]),
            label=None if labels is None else int(labels[i]),
        )
        for i in order
    )
