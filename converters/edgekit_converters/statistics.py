"""Statistics: how far a figure from some samples can be from the truth. Pure functions.

A figure's spread comes from a bootstrap that draws whole groups, as samples of one group (crops of
one photograph) are not independent (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapters 8 and 13). Two known faults of it are mended:

- Few groups: deviations are widened by `sqrt(g / (g - 1))` and by Student's t over the normal
  quantile, with g - 1 degrees of freedom (Hesterberg, "What Teachers Should Know About the
  Bootstrap", The American Statistician 69, 2015, section 5).
- What no sample showed: each draw is mixed with one more sample, the worst there can be, of weight
  Beta(1, n) (Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of
  a nonnegative variable", 2005). Where not one of n samples differs, this is the exact bound of
  Clopper and Pearson, 1 - .05^(1/n), near 3/n; n then counts samples, not groups: groups in which
  nothing differs do not tell how alike their samples are, so they are taken as independent.

The same values give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Floats = NDArray[np.float64]

DRAWS = 2000
ONE_SIDED = 0.95

_SEED = 95
_EACH_SIDE = 0.975
# Weights of draws that are held at a time; as many as a cache holds.
_BLOCK = 1 << 18
_MOST_SAMPLES = 10_000_000


class Tally(Protocol):
    """A figure of samples that can be worked out again for samples that count otherwise.

    Attributes:
        draws: how many draws it is worth; fewer for a figure that is costly.
    """

    @property
    def draws(self) -> int: ...

    def value(self, weights: Floats) -> Floats:
        """The figure [d] where sample i counts `weights[:, i]` times; `weights` is [d, n]."""
        ...


class Extent(NamedTuple):
    """How much a figure rests on."""

    samples: int
    groups: int


class Resampling:
    """Draws of groups with replacement, the same for every figure.

    Args:
        groups: int [n], samples with one number belong together.
    """

    def __init__(self, groups: NDArray[np.int64]) -> None:
        names, self._position = np.unique(groups, return_inverse=True)
        self.extent = Extent(len(groups), len(names))
        # The weights of groups are those of samples already.
        self._as_drawn = bool((self._position == np.arange(len(groups))).all())

    def draw(self, tallies: Sequence[Tally], *, most: int = DRAWS) -> list[Floats]:
        """Each figure over at most `most` draws, all on the same ones: differences are paired."""
        draws = min([most, *(tally.draws for tally in tallies)])
        parts: list[list[Floats]] = [[] for _ in tallies]
        for weights in self._weights(draws):
            for part, tally in zip(parts, tallies, strict=True):
                part.append(tally.value(weights))
        return [np.concatenate(part) for part in parts]

    def _weights(self, draws: int) -> Iterator[Floats]:
        """How often each sample counts in each draw, [d, n], in blocks of draws."""
        rng = np.random.default_rng(_SEED)
        samples, groups = self.extent
        step = max(1, _BLOCK // max(samples, 1))
        for start in range(0, draws, step):
            count = min(step, draws - start)
            drawn = rng.integers(0, groups, (count, groups))
            drawn += np.arange(count)[:, np.newaxis] * groups
            counts = np.bincount(drawn.ravel(), minlength=count * groups)
            by_group = counts.reshape(count, groups).astype(np.float64)
            yield by_group if self._as_drawn else by_group[:, self._position]


def high_bound(
    draws: Floats, extent: Extent, *, worst: float, level: float = ONE_SIDED
) -> float | None:
    """The upper bound of a figure, at `level`, from its draws.

    Args:
        draws: of `Resampling.draw`; those without a figure are NaN.
        worst: the largest figure that a single sample can have.

    Returns:
        None where all samples are one group: nobody knows how much groups differ.
    """
    known = draws[np.isfinite(draws)]
    if extent.groups < 2 or not len(known):
        return None
    centre = known.mean()
    widened = centre + (known - centre) * _widening(extent.groups, level)
    unseen = _unseen(len(known), extent.samples)
    mixed = (1 - unseen) * widened + unseen * worst
    return float(min(np.quantile(mixed, level), worst))


def low_bound(
    draws: Floats, extent: Extent, *, worst: float, level: float = ONE_SIDED
) -> float | None:
    """The lower bound of a figure, at `level`; `worst` is the smallest that a sample can have."""
    high = high_bound(-draws, extent, worst=-worst, level=level)
    return None if high is None else 0.0 - high


def interval(draws: Floats, extent: Extent, *, low: float, high: float) -> Interval | None:
    """The two-sided 95 % interval of a figure that lies between `low` and `high` for a sample."""
    bottom = low_bound(draws, extent, worst=low, level=_EACH_SIDE)
    top = high_bound(draws, extent, worst=high, level=_EACH_SIDE)
    return None if bottom is None or top is None else (bottom, top)


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p of McNemar's test, for independent samples.

    The probability that changes as lopsided as these come from models that are equally good
    (McNemar, Psychometrika 12, 1947; exact by the binomial distribution).

    Args:
        lost: samples that only the first model gets right.
        won: samples that only the second gets right.
    """
    changed = lost + won
    tail = sum(math.comb(changed, k) for k in range(min(lost, won) + 1))
    return min(1.0, float(2 * tail / 2**changed))


def share_high(samples: int) -> float:
    """The one-sided 95 % upper bound of the share of what none of n samples showed."""
    return float(1 - (1 - ONE_SIDED) ** (1 / samples))


def gap_later(gap: float, *, known: int, later: int) -> float:
    """The gap between a figure and its one-sided bound on `later` samples, from that on `known`.

    One part stands for what was not seen and falls with 1/n, the rest with the square root of n.
    """
    spread = known * max(gap**2 - share_high(known) ** 2, 0.0)
    return math.sqrt(spread / later + share_high(later) ** 2)


def samples_needed(samples: int, *, gap: float, room: float) -> int | None:
    """About how many samples would bring a bound within `room` of its figure.

    Args:
        gap: between a figure and its one-sided bound, on `samples` samples.
        room: between the figure and its limit.

    Returns:
        None where the figure lies so close to its limit that no sensible number would do.
    """
    if gap_later(gap, known=samples, later=_MOST_SAMPLES) > room:
        return None
    low, high = 0, _MOST_SAMPLES
    while high - low > 1:
        middle = (low + high) // 2
        enough = gap_later(gap, known=samples, later=middle) <= room
        low, high = (low, middle) if enough else (middle, high)
    return high


def _unseen(draws: int, samples: int) -> Floats:
    """Weights Beta(1, n) of the sample that was not seen, evenly over their distribution."""
    evenly = (np.arange(draws) + 0.5) / draws
    shuffled = np.random.default_rng(_SEED).permutation(evenly)
    weights: Floats = 1 - (1 - shuffled) ** (1 / samples)
    return weights


@lru_cache(maxsize=256)
def _widening(groups: int, level: float) -> float:
    """What deviations of a bootstrap over few groups are multiplied by."""
    student = student_quantile(level, groups - 1)
    return math.sqrt(groups / (groups - 1)) * student / NormalDist().inv_cdf(level)


def student_quantile(level: float, freedom: int) -> float:
    """The quantile of Student's t distribution; `level` above .5, `freedom` at least 1."""
    x = beta_quantile(2 * (1 - level), freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


def beta_quantile(level: float, a: float, b: float) -> float:
    """Where the distribution function of Beta(a, b) reaches `level`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, a, b) < level else (low, middle)
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.5.8, evaluated by the method
    of Lentz (Applied Optics 15, 1976).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    numerator, denominator = 1.0, 1.0 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    fraction = denominator
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 / _away_from_zero(1 + term * denominator, tiny)
            numerator = _away_from_zero(1 + term / numerator, tiny)
            fraction *= denominator * numerator
        if abs(denominator * numerator - 1) < 1e-15:
            break
    return front * fraction


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
