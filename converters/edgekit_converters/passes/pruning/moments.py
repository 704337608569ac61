"""Moments: first and second moments of what a layer reads, all that least squares needs of data.

They are sums over rows, so samples are seen one by one and forgotten. A ridge of each feature's own
variance stands for data that was not seen: few samples make features look more alike than they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.passes.pruning.layers import Matrix

_RIDGE = 0.1
_FLOOR = 1e-6
# Rows that are multiplied at once: adding to all products costs as much as many rows.
_TOGETHER = 512


class Moments:
    """Sums over rows of a layer's features.

    Args:
        features: how many the layer reads.
    """

    def __init__(self, features: int) -> None:
        self._products = np.zeros((features, features), np.float32)
        self._sums = np.zeros(features)
        self._count = 0
        self._waiting: list[NDArray[np.float32]] = []

    def add(self, rows: NDArray[np.float32]) -> None:
        """Count rows, [features, n]."""
        self._sums += rows.sum(axis=1, dtype=np.float64)
        self._count += rows.shape[1]
        self._waiting.append(rows)
        if sum(each.shape[1] for each in self._waiting) >= _TOGETHER:
            self._multiply()

    def include(self, other: Moments) -> None:
        """Count the rows of other moments of the same features."""
        other._multiply()
        self._products += other._products
        self._sums += other._sums
        self._count += other._count

    @property
    def finite(self) -> bool:
        """Whether rows were seen, and no value in them that is not a number."""
        self._multiply()
        return bool(self._count and np.isfinite(self._products).all())

    def mean(self, *, centred: bool) -> Matrix:
        """Of each feature. Where a layer has no bias to take up a shift, moments are about zero:
        then it counts as zero."""
        mean: Matrix = self._sums / self._count if centred else np.zeros_like(self._sums)
        return mean

    def covariance(self, *, centred: bool) -> Matrix:
        """[features, features], about the mean, or about zero."""
        self._multiply()
        mean = self.mean(centred=centred)
        covariance: Matrix = self._products / np.float64(self._count) - np.outer(mean, mean)
        return covariance

    def _multiply(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting, axis=1)
            self._products += rows @ rows.T
            self._waiting.clear()


def ridged(covariance: Matrix) -> Matrix:
    """A covariance that can be inverted: each variance a little larger."""
    variances = np.maximum(np.diag(covariance), 0)
    floor = _FLOOR * float(variances.mean()) or _FLOOR
    ridge: Matrix = covariance + np.diag(_RIDGE * variances + floor)
    return ridge
