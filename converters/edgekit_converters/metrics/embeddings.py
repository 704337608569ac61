"""Embeddings: does a vector still point the same way, and has it still the same neighbour?

The neighbour of a sample is the one of the other evaluation samples with the largest cosine. With
class labels, `retrieval` is the share of samples whose neighbour has their label (recall at 1), by
each model; without, the share that keep the neighbour they have in the float source.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit_converters.metrics.classification import equal
from edgekit_converters.metrics.scoring import (
    Case,
    Measure,
    Scored,
    by_rows,
    numbers_of,
    of_samples,
    rows_of,
)
from edgekit_converters.metrics.views import is_class_labels
from edgekit_converters.statistics import Floats

_BLOCK = 512


def cosines(a: Floats, b: Floats) -> Floats:
    """The cosine [n] between rows of a and b, [n, k]; 1 where both are zero, 0 where one is."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    dots = (a * b).sum(axis=1)
    cosine: Floats = np.where(both_zero, 1.0, dots / np.where(lengths == 0, 1.0, lengths))
    return cosine


def neighbours(vectors: Floats) -> NDArray[np.intp]:
    """For each row of [n, k] the position [n] of the other row with the largest cosine."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths == 0, 1.0, lengths)
    nearest = np.empty(len(units), np.intp)
    for start in range(0, len(units), _BLOCK):
        close = units[start : start + _BLOCK] @ units.T
        rows = np.arange(len(close))
        close[rows, start + rows] = -np.inf
        nearest[start : start + _BLOCK] = close.argmax(axis=1)
    return nearest


def _score_cosine(case: Case) -> Scored:
    parts = [
        by_rows(cosines, array, case.artefact[name]) for name, array in numbers_of(case).items()
    ]
    return of_samples("float", np.mean(parts, axis=0))


def _score_retrieval(case: Case) -> Scored:
    name = next((n for n, a in case.source.items() if a.dtype.kind == "f" and a[:1].size > 1), None)
    if name is None or case.samples < 2:
        raise RecipeError(
            f"metric {case.name} needs an output of vectors and two samples at least",
            hint="use metric: mse",
        )
    before = neighbours(rows_of(case.source[name]))
    after = neighbours(rows_of(case.artefact[name]))
    if case.labels is None or not is_class_labels(case.labels):
        return of_samples("float", equal(after, before))
    own = case.labels
    return of_samples("labels", equal(own[after], own), equal(own[before], own))


COSINE = Measure(_score_cosine, kinds=("values",))
RETRIEVAL = Measure(_score_retrieval, kinds=("values",))
