"""Blocks: how many samples in a row count as one, because what follows each other is alike.

Frames of a video are not independent: a version that errs on one errs on the next. Means of long
enough blocks are nearly independent, whatever the samples are. How long that is, is told by the old
version's answers, which are there whatever the new one does: the length is doubled until means of
neighbouring blocks correlate little (Law and Carson, "A sequential procedure for determining the
length of a steady-state simulation", Operations Research 27, 1979).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_BLOCKS = 10
# Between these what is allowed is what independent values show by chance: two standard errors.
_HARMLESS, _HARMFUL = 0.1, 0.4
_ERRORS = 2.0


def means(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """The mean of each whole block, leaving out values that are NaN, and blocks of nothing else."""
    count = len(values) // length
    blocks = values[: count * length].reshape(count, length)
    known = ~np.isnan(blocks)
    some = known.any(axis=1)
    sums = np.where(known, blocks, 0.0).sum(axis=1)
    return np.asarray(sums[some] / known.sum(axis=1)[some])


def correlation(values: NDArray[np.float64]) -> float:
    """Of each value with the next one; 0 where none differs from another."""
    if len(values) < 3:
        return 0.0
    away = values - values.mean()
    power = float(away @ away)
    return float(away[:-1] @ away[1:]) / power if power > 0 else 0.0


def long_enough(signal: NDArray[np.float64]) -> int | None:
    """Samples that a block needs, a power of two; `None` where there are too few to tell.

    Args:
        signal: one number a sample, of the old version's answer, in order.
    """
    length = 1
    while len(signal) // length >= LEAST_BLOCKS:
        found = means(signal, length)
        if correlation(found) <= _allowed(len(found)):
            return length
        length *= 2
    return None


def _allowed(count: int) -> float:
    """The largest correlation with which that many means pass for independent."""
    return min(_HARMFUL, max(_HARMLESS, _ERRORS / float(np.sqrt(count))))
