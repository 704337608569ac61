"""Scoring: what every metric takes and gives.

A metric scores the float source and an artefact on the same samples, against the labels or, without
them, against the source itself. A score is higher where an answer is better: 1 is as good as can
be, 0 a sample that is lost. So the drop, source minus artefact, is in the unit of the budget for
every metric. A figure is kept as a tally: it can be worked out again for samples that are drawn
several times or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit_converters.metrics.views import Kind, View
from edgekit_converters.statistics import DRAWS, Floats, Tally

Outputs = Mapping[str, NDArray[Any]]
Reference = Literal["labels", "float", "function"]
RowFigure = Callable[[Floats, Floats], Floats]

# Small enough for a cache.
_BLOCK_BYTES = 1 << 21


@dataclass(frozen=True)
class Case:
    """What a metric judges.

    Attributes:
        name: of the metric, for messages.
        view: which output holds the answer, and how.
        source, artefact: outputs by name, axis 0 counting the same samples; numbers throughout.
        labels: as in `data.Samples`.
    """

    name: str
    view: View
    source: Outputs
    artefact: Outputs
    labels: NDArray[Any] | None

    @property
    def samples(self) -> int:
        return len(next(iter(self.source.values())))


@dataclass(frozen=True)
class ClassTally:
    """The figure of one class.

    Attributes:
        which: positions of the samples that tell something of it.
    """

    which: NDArray[np.intp]
    source: Tally
    artefact: Tally


@dataclass(frozen=True)
class Scored:
    """What a metric found.

    Attributes:
        reference: what both models were compared with: labels, the float source, or nothing but
            the user's function.
        scores: of the artefact by sample, [n], where the metric has such.
        unlike: how far the artefact's answer to each sample is from the source's, 0 to 1, [n],
            where numbers of the outputs do not say it: boxes and masks.
        classes: figures by class, where the metric has such.
    """

    reference: Reference
    source: Tally
    artefact: Tally
    scores: Floats | None = None
    unlike: Floats | None = None
    classes: Mapping[int, ClassTally] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """A metric.

    Attributes:
        kinds: the outputs it can judge, the first that fits; None takes any.
        is_error: shown as an error, 1 minus the score: 0 is as good as can be.
    """

    score: Callable[[Case], Scored]
    kinds: tuple[Kind, ...] | None
    is_error: bool = False


@dataclass(frozen=True)
class Mean:
    """The mean of scores [n]; of those at `which`, where that is given."""

    scores: Floats
    which: NDArray[np.intp] | None = None
    draws: int = DRAWS

    def value(self, weights: Floats) -> Floats:
        if self.which is not None:
            weights = weights[:, self.which]
        scores = self.scores if self.which is None else self.scores[self.which]
        return shares(weights @ scores, weights.sum(axis=1))


@dataclass(frozen=True)
class MeanRatio:
    """The mean over columns of sum(part) / sum(whole), both [n, c]; empty columns do not count."""

    part: Floats
    whole: Floats
    draws: int = DRAWS

    def value(self, weights: Floats) -> Floats:
        return mean_known(shares(weights @ self.part, weights @ self.whole))


def of_samples(reference: Reference, artefact: Floats, source: Floats | None = None) -> Scored:
    """The means of scores by sample; against the source itself its own scores are 1."""
    own = np.ones(len(artefact)) if source is None else source
    return Scored(reference=reference, source=Mean(own), artefact=Mean(artefact), scores=artefact)


def shares(part: Floats, whole: Floats) -> Floats:
    """part / whole; NaN where the whole is 0."""
    share: Floats = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    return share


def mean_known(values: Floats) -> Floats:
    """Means [d] of values [d, c] that are not NaN; NaN where all of them are."""
    known = ~np.isnan(values)
    return shares(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def numbers_of(case: Case) -> dict[str, NDArray[Any]]:
    """The outputs of the source that hold numbers, by name; `RecipeError` where none does."""
    found = {name: a for name, a in case.source.items() if a.dtype.kind in "fiub" and a.size}
    if not found:
        raise RecipeError(
            f"metric {case.name} needs numbers; the outputs {', '.join(case.source)} hold none",
            hint="use metric: agreement, or module:function of your own",
        )
    return found


def by_rows(figure: RowFigure, a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """A figure [n] of rows of a and b as float64 [m, k], in blocks that take little memory."""
    parts = [figure(*pair) for pair in zip(blocks_of(a), blocks_of(b), strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0)


def blocks_of(array: NDArray[Any]) -> Iterator[Floats]:
    """The rows of an array as float64 [m, k], a few at a time."""
    step = max(1, _BLOCK_BYTES // max(array[:1].size * 8, 1))
    for start in range(0, len(array), step):
        yield rows_of(array[start : start + step])


def rows_of(array: NDArray[Any]) -> Floats:
    """An array as float64 [n, k]."""
    rows: Floats = array.reshape(len(array), -1).astype(np.float64)
    return rows


def require_labels(case: Case, *, instead: str) -> NDArray[Any]:
    """The labels, raising `RecipeError` that names another metric where there are none."""
    if case.labels is None:
        raise RecipeError(
            f"metric {case.name} needs labels in the data", hint=f"use metric: {instead}"
        )
    return case.labels
