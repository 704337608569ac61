"""Evaluate: how far an artefact's answers are from the source's, and from the truth where known.

Both models answer the same samples, so all comparisons are paired. Figures are over all samples;
intervals and bounds come from `edgekit_converters.statistics`, which draws whole groups, as samples
of one group (crops of one photograph) are not independent. The same outputs give the same figures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.steps import PostStep
from edgekit.structs import Strict
from edgekit_converters import metrics
from edgekit_converters.data import Samples
from edgekit_converters.metrics.changes import (
    ClassChange,
    Flips,
    Worst,
    class_changes,
    confidences_of,
    flips_of,
    values_of,
    worst_of,
)
from edgekit_converters.metrics.classification import answers, by_class, equal
from edgekit_converters.metrics.scoring import (
    Case,
    Mean,
    Outputs,
    Reference,
    blocks_of,
    by_rows,
)
from edgekit_converters.metrics.spread import OutputSpread, spreads
from edgekit_converters.metrics.views import Kind, view_as
from edgekit_converters.statistics import (
    Floats,
    Resampling,
    high_bound,
    interval,
    low_bound,
)
from edgekit_converters.statistics import Interval as Interval

_BINS = 40
# JSON has no infinity.
_NOT_A_NUMBER = sys.float_info.max


class Metric(Strict, frozen=True, kw_only=True):
    """The metric that the budget's `accuracy_drop` is about.

    Attributes:
        value: of the artefact; `mse` and `mae` are errors, as a share of how much the truth varies.
        float_value: of the source, on the same samples.
        ci95: 95 % interval of `value`; None where all samples belong to one group.
        drop: how much worse the artefact is than the source; negative where it is better.
        drop_ci95: of `drop`, from paired draws.
        reference: what both were compared with: the labels, the float source itself, or nothing
            but what the user's function knows.
    """

    name: str
    value: float
    float_value: float = msgspec.field(name="float")
    ci95: Interval | None
    drop: float
    drop_ci95: Interval | None
    reference: Reference


class Evaluation(Strict, frozen=True, kw_only=True):
    """What was found on the evaluation samples.

    Attributes:
        groups: how many groups the samples come from.
        kind: what the model's answer is.
        agreement: share of samples with the source's answer; None where the answer is no class.
        agreement_low: one-sided 95 % lower bound of it; None where there is one group.
        drop_high: one-sided 95 % upper bound of the metric's drop; None where there is one group.
        max_abs_error: largest difference in any output of any sample; the largest number there is
            where an output is no number.
        scale: root mean square of the source's outputs, to read errors by.
        finite: whether every output is a number.
        errors: counts of the largest absolute error of a sample, in equal bins up to the largest.
        confidences: for class scores, each sample's probability of the source's top answer, by the
            source and by the artefact.
    """

    samples: int
    groups: int
    kind: Kind
    agreement: float | None
    agreement_ci95: Interval | None
    agreement_low: float | None
    metric: Metric
    drop_high: float | None
    flips: Flips | None
    max_abs_error: float
    scale: float
    finite: bool
    errors: tuple[int, ...]
    outputs: tuple[OutputSpread, ...]
    classes: tuple[ClassChange, ...] = ()
    confidences: tuple[tuple[float, float], ...] = ()
    worst: tuple[Worst, ...] = ()


def evaluate(
    reference: Outputs,
    outputs: Outputs,
    samples: Samples,
    *,
    metric: str | None,
    post: Sequence[PostStep] = (),
) -> Evaluation:
    """Compare an artefact's outputs with the source's on the same samples.

    Args:
        reference: outputs of the source by name, axis 0 counting samples.
        outputs: outputs of the artefact, same names and shapes.
        samples: what both were given; its labels and groups count here.
        metric: what to judge by, a name of `metrics.METRICS` or `module:function`; None chooses by
            the outputs and the labels.
        post: the recipe's postprocess; its step `boxes` reads what a detector answers.

    Raises:
        RecipeError: there is no such metric, or it cannot judge these outputs or labels.
        DataError: the labels do not fit the outputs.
    """
    name, measure, view = metrics.choose(metric, reference, samples.labels, post)
    case = Case(name, view, _numbers(reference), _numbers(outputs), samples.labels)
    scored = measure.score(case)
    found = answers(view, case.source, case.artefact)
    agrees = None if found is None else equal(*found)

    resampling = Resampling(samples.groups)
    extent = resampling.extent
    tallies = [scored.source, scored.artefact, *([] if agrees is None else [Mean(agrees)])]
    own, value, *_ = values_of(tallies, samples.count)
    before, after, *agreeing = resampling.draw(tallies)
    drops = before - after
    # A score lies between 0 and 1, unless the metric (an error, a user's function) goes beyond.
    lowest, highest = min(0.0, float(np.nanmin(after))), max(1.0, float(np.nanmax(after)))
    shown = interval(after, extent, low=lowest, high=highest)
    most = max(1.0, own, float(np.nanmax(np.abs(drops))))
    agreement_low = low_bound(agreeing[0], extent, worst=0.0) if agreeing else None
    rate_ci95 = interval(1 - agreeing[0], extent, low=0.0, high=1.0) if agreeing else None

    error = _errors_by_sample(reference, outputs)
    finite = all(_finite(array) for array in outputs.values())
    flips = None if found is None else flips_of(found, samples.labels, rate_ci95)
    by_label = scored.classes or by_class(samples.labels, found)
    return Evaluation(
        samples=extent.samples,
        groups=extent.groups,
        kind=view.kind,
        agreement=None if agrees is None else float(agrees.mean()),
        agreement_ci95=None if flips is None else _mirrored(flips.rate_ci95),
        agreement_low=agreement_low,
        metric=Metric(
            name=name,
            value=1 - value if measure.is_error else value,
            float_value=1 - own if measure.is_error else own,
            ci95=_mirrored(shown) if measure.is_error else shown,
            drop=own - value,
            drop_ci95=interval(drops, extent, low=-most, high=most),
            reference=scored.reference,
        ),
        drop_high=high_bound(drops, extent, worst=most),
        flips=flips,
        max_abs_error=float(error.max(initial=0.0)),
        scale=scale_of(reference),
        finite=finite,
        errors=_histogram(error) if finite else (),
        outputs=spreads(reference, outputs),
        classes=class_changes(by_label, samples.groups, resampling),
        confidences=confidences_of(case),
        worst=worst_of(error, case, found, scored.unlike),
    )


def class_scores(outputs: Outputs) -> str | None:
    """The output that holds scores [n, classes] of a classifier, if it is one by its outputs."""
    view = view_as("classes", outputs, None, asked=False)
    return view.output if view else None


def scale_of(outputs: Outputs) -> float:
    """Root mean square over all outputs that hold numbers; what an error is small against."""
    squares = [
        sum(float(np.square(block).sum()) for block in blocks_of(array)) / array.size
        for array in outputs.values()
        if array.dtype.kind in "fiub" and array.size
    ]
    return float(np.sqrt(np.mean(squares))) if squares else 0.0


def noise_of(reference: Outputs, outputs: Outputs) -> float | None:
    """Power of the error over that of the answers, over all float outputs; 0 where no output is a
    float, None where an answer is no number."""
    error = power = 0.0
    for name, wanted in reference.items():
        if wanted.dtype.kind == "f":
            error += float(np.square(wanted.astype(np.float64) - outputs[name]).sum())
            power += float(np.square(wanted, dtype=np.float64).sum())
    ratio = error / power if power else error
    return ratio if np.isfinite(ratio) else None


def max_abs_error(reference: Outputs, outputs: Outputs) -> float:
    """The largest difference in any output; the largest number where one is not a number."""
    return float(_errors_by_sample(reference, outputs).max(initial=0.0))


def _mirrored(ends: Interval | None) -> Interval | None:
    """The interval of 1 minus a figure."""
    return None if ends is None else (1 - ends[1], 1 - ends[0])


def _errors_by_sample(reference: Outputs, outputs: Outputs) -> Floats:
    """The largest absolute difference in any output of each sample, [n]."""
    errors = [_errors(array, outputs[name]) for name, array in reference.items()]
    largest: Floats = np.max(np.stack(errors), axis=0)
    return largest


def _errors(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    if a.dtype.kind not in "fiub":
        differs: Floats = (a != b).reshape(len(a), -1).any(axis=1).astype(np.float64)
        return differs
    gaps = by_rows(lambda x, y: np.abs(x - y).max(axis=1, initial=0.0), a, b)
    return np.where(np.isfinite(gaps), gaps, _NOT_A_NUMBER)


def _finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _numbers(outputs: Outputs) -> Outputs:
    """Outputs with 0 for what is no number: such an artefact is refused whatever its figures."""
    return {
        name: array if _finite(array) else np.where(np.isfinite(array), array, 0)
        for name, array in outputs.items()
    }


def _histogram(error: Floats) -> tuple[int, ...]:
    counts = np.histogram(error, _BINS, range=(0, float(error.max(initial=0.0)) or 1.0))[0]
    return tuple(counts.tolist())
