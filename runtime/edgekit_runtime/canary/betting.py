"""Betting: how much a sequence of numbers from 0 to 1 speaks against a mean that is too low.

A gambler who starts with 1 bets on each number before it is seen. Where the true mean is at most
`mean`, no way of betting makes money in the long run, and the chance that the capital ever reaches
1 / level is at most `level` (Ville's inequality). So one may look after every number and stop as
soon as it is there: a test with a known error rate and no fixed number of samples.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B
86 (2024), sections 4 and 5; for numbers that are 0 or 1 the bet towards `hoped` is Wald's
likelihood ratio (Wald, "Sequential tests of statistical hypotheses", Ann. Math. Stat. 16, 1945).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# Shares of the largest bet that cannot lose all; one of them is near the best for any true mean.
_STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
_LARGEST = 0.99
_STEPS = 20


def evidence(values: Values, *, mean: float, hoped: float | None = None) -> float:
    """Log of the largest capital that was ever reached by betting against "the mean is <= mean".

    Half of the capital is bet as if the mean were `hoped`, the rest in equal parts at fixed stakes,
    so that no guess is needed of how far the true mean is from `mean`.

    Args:
        values: in the order in which they were seen, each 0 to 1.
        mean: above 0 and below 1.
        hoped: a mean that is worth telling apart; one that is not above `mean` is not.

    Returns:
        at least 0, which is the capital before the first bet; -log(level) or more happens with a
        chance of at most `level`, where given those before it each value's expectation is at
        most `mean`.
    """
    if not len(values):
        return 0.0
    stakes, weights = _STAKES, np.full(len(_STAKES), 1 / len(_STAKES))
    if hoped is not None and hoped > mean:
        wald = min(_LARGEST, (hoped - mean) / (1 - mean))
        stakes, weights = np.append(stakes, wald), np.append(weights / 2, 0.5)
    # Capital of one stake f after a value x is multiplied by 1 - f + f * x / mean.
    factors = 1 - stakes[:, np.newaxis] * (1 - values / mean)
    logs = np.cumsum(np.log(factors), axis=1) + np.log(weights)[:, np.newaxis]
    top = logs.max(axis=0)
    capital = top + np.log(np.exp(logs - top).sum(axis=0))
    return max(0.0, float(capital.max()))


def interval(values: Values, *, level: float) -> tuple[float, float]:
    """Bounds that hold the mean at all times together with a chance of at least 1 - level.

    A confidence sequence: the means that betting does not refute, half of `level` on each side.
    """
    return _lower(values, level / 2), 1 - _lower(1 - values, level / 2)


def _lower(values: Values, level: float) -> float:
    """The largest mean that is refuted; a larger one is always refuted less."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if evidence(values, mean=middle) >= -math.log(level):
            low = middle
        else:
            high = middle
    return low
