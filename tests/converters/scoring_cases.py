"""How the tests of metrics ask for a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters import metrics
from edgekit_converters.metrics.scoring import Case, Scored
from edgekit_converters.metrics.views import Outputs
from edgekit_converters.statistics import Tally


def scored(
    metric: str, source: Outputs, artefact: Outputs, labels: NDArray[Any] | None = None
) -> Scored:
    """What a metric says of two models."""
    name, measure, view = metrics.choose(metric, source, labels)
    return measure.score(Case(name, view, source, artefact, labels))


def value(tally: Tally, samples: int) -> float:
    """A figure where every sample counts once."""
    return float(tally.value(np.ones((1, samples)))[0])


def figures(
    metric: str, source: Outputs, artefact: Outputs, labels: NDArray[Any] | None = None
) -> tuple[float, float]:
    """The score of the source and of the artefact."""
    found = scored(metric, source, artefact, labels)
    count = len(next(iter(source.values())))
    return value(found.source, count), value(found.artefact, count)
