"""Spread: what the numbers of an output look like, in the float source and in an artefact.

Statistics need no labels. They show faults that a mean hides: an output that is cut off at the ends
of its range, or that no longer depends on the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_converters.metrics.scoring import Outputs, blocks_of
from edgekit_converters.statistics import Floats

_SMALLEST = 64


class Spread(Strict, frozen=True, kw_only=True):
    """Statistics of the numbers of one output over all samples.

    Attributes:
        saturated: share of numbers that equal the smallest or the largest of all, where more than
            one of each does: what was cut off lies there. 0 for an output of few values.
        constant: share of the numbers of a sample that are the same in every sample.
        finite: share of numbers that are neither NaN nor infinite; the rest is about these.
    """

    mean: float
    std: float
    low: float
    high: float
    saturated: float
    constant: float
    finite: float


class OutputSpread(Strict, frozen=True, kw_only=True):
    """One output; `source` and `artefact` are None where it holds no finite number."""

    name: str
    source: Spread | None
    artefact: Spread | None


def spreads(source: Outputs, artefact: Outputs) -> tuple[OutputSpread, ...]:
    """Statistics of every output, in the model's order."""
    return tuple(
        OutputSpread(name=name, source=spread(array), artefact=spread(artefact[name]))
        for name, array in source.items()
    )


def spread(array: NDArray[Any]) -> Spread | None:
    """Statistics of an output [n, …]; None where it holds no finite number."""
    if array.dtype.kind not in "fiub":
        return None
    count, total, low, high = 0, 0.0, math.inf, -math.inf
    for known in _finite_blocks(array):
        count, total = count + known.size, total + known.sum()
        low, high = min(low, known.min(initial=low)), max(high, known.max(initial=high))
    if not count:
        return None
    mean, squares, at_low, at_high = total / count, 0.0, 0, 0
    for known in _finite_blocks(array):
        squares += np.square(known - mean).sum()
        at_low, at_high = at_low + (known == low).sum(), at_high + (known == high).sum()
    few = count < _SMALLEST or low == high or array.dtype.kind == "b"
    cut_off = 0 if few else sum(int(at_end) for at_end in (at_low, at_high) if at_end > 1)
    return Spread(
        mean=float(mean),
        std=float(np.sqrt(squares / count)),
        low=float(low),
        high=float(high),
        saturated=cut_off / count,
        constant=_constant(array),
        finite=count / array.size,
    )


def _finite_blocks(array: NDArray[Any]) -> Iterator[Floats]:
    for block in blocks_of(array):
        finite = np.isfinite(block)
        yield block if finite.all() else block[finite]


def _constant(array: NDArray[Any]) -> float:
    """The share of the numbers of a sample that are the same in all samples."""
    if len(array) < 2:
        return 0.0
    same = np.ones(array.shape[1:], bool)
    for row in array[1:]:
        same &= row == array[0]
    return float(same.mean())
