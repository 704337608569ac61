"""Judge: whether a window's counts could be the reference's, by chance.

A permutation test over clusters. Of each feature the shares up to each edge are compared by the sum
of squared differences, each over its own variance between clusters (as Anderson and Darling weigh
them); the feature that differs most counts. How large that is by chance is found by dealing the
clusters of both sides out anew, so no feature needs to be independent of another, and no
distribution is assumed. Where clusters of both sides are exchangeable the rate of false alarms is
exact; where they only have the same mean it is approached with many clusters, which is what the
variances are for (Chung and Romano, "Exact and asymptotically robust permutation tests", Annals of
Statistics 41, 2013). Dealing stops as soon as the answer is clear (Besag and Clifford, "Sequential
Monte Carlo p-values", Biometrika 78, 1991).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.drift.views import Floats
from edgekit.structs import Strict

MIN_CLUSTERS = 8
"""On either side; fewer say nothing about how much counts vary."""
MOST_DEALS = 19_999
"""The least p value is one in 20,000."""

_ENOUGH = 10
_CHUNK = 200
_LEAST_VARIANCE = 1e-8
# Shares up to neighbouring edges go together: seven of them vary about as three free ones do.
_SHARED = 3


class Finding(Strict, frozen=True, kw_only=True):
    """What the comparison gave.

    Attributes:
        p: how often chance alone differs as much.
        feature: position of the one that differs most, given how much it varies.
        distance: by how much its shares differ in all, 0 to 1 (total variation).
    """

    p: float
    feature: int
    distance: float


def judge_parts(
    parts: Sequence[tuple[NDArray[Any], NDArray[Any]]], *, least_rows: int, rng: np.random.Generator
) -> tuple[int, Finding] | None:
    """Compare several parts, inputs and outputs, and tell of the one that differs most.

    Args:
        parts: counts of reference and window of each, as `judge` takes them.
        least_rows: samples below which a cluster of a window says nothing of a part.
        rng: deals the clusters out.

    Returns:
        Its position, and its finding with a p value for all parts together (Bonferroni); None
        where no part can be judged.
    """
    found: dict[int, Finding] = {}
    for position, (reference, window) in enumerate(parts):
        enough = (window.sum(axis=2) >= least_rows).all(axis=1)
        finding = judge(reference, window[enough], rng=rng)
        if finding is not None:
            found[position] = finding
    if not found:
        return None
    least = min(found, key=lambda position: found[position].p)
    p = min(1.0, found[least].p * len(found))
    return least, msgspec.structs.replace(found[least], p=p)


def judge(
    reference: NDArray[Any], window: NDArray[Any], *, rng: np.random.Generator
) -> Finding | None:
    """Compare counts.

    Args:
        reference: [clusters, features, bins]; clusters are independent of each other.
        window: [clusters, features, bins]; those without a sample do not count.
        rng: deals the clusters out.

    Returns:
        None where either side has fewer than `MIN_CLUSTERS` clusters or there is no feature.
    """
    ours, theirs = _shares(window), _shares(reference)
    if min(len(ours), len(theirs)) < MIN_CLUSTERS or ours.shape[1] == 0:
        return None
    shares = np.concatenate([ours, theirs])
    pool = _Pool(np.cumsum(shares, axis=2), taken=len(ours))
    mask = np.zeros((1, len(shares)))
    mask[0, : len(ours)] = 1.0
    scores = pool.scores(mask)[0]
    feature = int(scores.argmax())
    difference = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))[feature]
    return Finding(
        p=_p_value(pool, scores[feature], rng=rng),
        feature=feature,
        distance=float(difference.sum() / 2),
    )


def _p_value(pool: _Pool, observed: float, *, rng: np.random.Generator) -> float:
    """Share of deals that differ as much as what was observed, that one counted in."""
    exceeded = dealt = 0
    while dealt < MOST_DEALS:
        masks = pool.deal(min(_CHUNK, MOST_DEALS - dealt), rng)
        largest = pool.scores(masks).max(axis=1)
        # Rounding must not make a deal that is the observed one look smaller.
        above = np.flatnonzero(largest >= observed - 1e-9)
        if exceeded + len(above) >= _ENOUGH:
            return _ENOUGH / (dealt + int(above[_ENOUGH - exceeded - 1]) + 1)
        exceeded += len(above)
        dealt += len(masks)
    return (exceeded + 1) / (dealt + 1)


class _Pool:
    """Clusters of both sides together, and their differences however they are dealt out."""

    def __init__(self, cumulated: Floats, *, taken: int) -> None:
        self._shape = cumulated.shape
        self._taken = taken
        flat = cumulated.reshape(len(cumulated), -1)
        # Edges below or above everything that was seen tell nothing.
        self._telling = np.maximum(1, (np.ptp(cumulated, axis=0) > 0).sum(axis=1))
        self._both = np.concatenate([flat, flat * flat], axis=1)
        self._sums = self._both.sum(axis=0)

    def deal(self, count: int, rng: np.random.Generator) -> Floats:
        """Ones for the clusters that are dealt to the window's side, [count, clusters]."""
        order = rng.random((count, self._shape[0])).argpartition(self._taken - 1, axis=1)
        masks = np.zeros((count, self._shape[0]))
        np.put_along_axis(masks, order[:, : self._taken], 1.0, axis=1)
        return masks

    def scores(self, masks: Floats) -> Floats:
        """How much the sides differ in each feature, [masks, features], all on one scale."""
        few, many = self._taken, self._shape[0] - self._taken
        inside = masks @ self._both
        outside = self._sums - inside
        cells = inside.shape[1] // 2
        means = inside[:, :cells] / few, outside[:, :cells] / many
        variances = (
            (inside[:, cells:] / few - means[0] ** 2) / (few - 1),
            (outside[:, cells:] / many - means[1] ** 2) / (many - 1),
        )
        variance = np.maximum(variances[0] + variances[1], _LEAST_VARIANCE)
        cell = (means[0] - means[1]) ** 2 / variance
        whole = cell.reshape(len(masks), *self._shape[1:]).sum(axis=2)
        return _normal(whole / self._telling, 1 + (self._telling - 1) / _SHARED)


def _shares(counts: NDArray[Any]) -> Floats:
    """Share of each bin in each cluster that has samples."""
    totals = counts.sum(axis=2, dtype=np.float64)
    seen = (totals > 0).all(axis=1)
    shares: Floats = counts[seen] / totals[seen][:, :, np.newaxis]
    return shares


def _normal(mean: Floats, freedom: Floats) -> Floats:
    """Means of squares on one scale, as if chi-squared over its degrees of freedom (Wilson and
    Hilferty, "The distribution of chi-square", 1931)."""
    ninth = 2 / (9 * freedom)
    scaled: Floats = (np.cbrt(mean) - (1 - ninth)) / np.sqrt(ninth)
    return scaled
