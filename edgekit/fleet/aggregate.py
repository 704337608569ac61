"""Aggregate: many updates become one set of weights, in memory of the order of the model.

Federated averaging: each update (weights after minus before) counts by its number of samples, and
is added to a running sum and dropped. Source: McMahan et al., "Communication-Efficient Learning of
Deep Networks from Decentralized Data", 2017, algorithm 1. What could spoil the sum is found before
it is added: `fault` says why.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgekit.tensors import Arrays

# An update that moves the weights by more than this many times their own length is no training.
MAX_NORM_RATIO = 10.0


class Average:
    """The weighted mean of updates, as a running sum in float64.

    Args:
        base: the weights that every update starts from.
    """

    def __init__(self, base: Arrays) -> None:
        self._base = base
        self._sums = {name: np.zeros(array.shape, np.float64) for name, array in base.items()}
        self._samples = 0

    @property
    def samples(self) -> int:
        """How many samples stand behind the mean."""
        return self._samples

    def add(self, update: Arrays, *, samples: int) -> None:
        """Count an update in which `fault` found nothing, with weight `samples` (above 0)."""
        for name, total in self._sums.items():
            total += update[name].astype(np.float64) * samples
        self._samples += samples

    def result(self) -> Arrays:
        """Base plus mean, in the datatypes of the base; the base itself without any update."""
        if self._samples == 0:
            return dict(self._base)
        return {
            name: (array + self._sums[name] / self._samples).astype(array.dtype)
            for name, array in self._base.items()
        }


def fault(update: Arrays, base: Arrays) -> tuple[str, str] | None:
    """Why an update cannot be counted, as a reason code and a sentence; `None` where it can."""
    if set(update) != set(base):
        odd = sorted(set(update) ^ set(base))[0]
        return "wrong_names", f"{odd} is not in both the update and the parameters"
    for name, array in base.items():
        given = update[name]
        if given.shape != array.shape:
            return "wrong_shape", f"{name} has shape {given.shape}, not {array.shape}"
        if given.dtype != array.dtype:
            return "wrong_datatype", f"{name} is {given.dtype}, not {array.dtype}"
        if not np.isfinite(given).all():
            return "not_finite", f"{name} holds NaN or infinity"
    length, allowed = norm(update), MAX_NORM_RATIO * (norm(base) + 1.0)
    if length > allowed:
        return "norm_too_large", f"the update has length {length:.3g}, at most {allowed:.3g}"
    return None


def norm(arrays: Arrays) -> float:
    """The Euclidean length of all arrays taken as one vector."""
    return math.sqrt(sum(_square(array) for array in arrays.values()))


def _square(array: NDArray[np.floating]) -> float:
    flat = array.astype(np.float64).ravel()
    return float(flat @ flat)
