"""Slo: which share of requests must be answered within which time.

A request that failed, was turned away or was never answered counts as late, whatever its limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.structs import Strict

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
_UNITS_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_MIN_LIMIT_NS, _MAX_LIMIT_NS = 1_000, 3600 * 10**9
_FORM = re.compile(r"(p[0-9.]+)=([0-9]*\.?[0-9]+)(us|ms|s)")
# So many late requests are expected in a run at the limit before its percentile is worth quoting.
_LATE_EXPECTED = 10
# The 95 % point of the normal distribution.
_Z = 1.6449


class Objective(Strict, frozen=True):
    """One line of an SLO.

    Attributes:
        name: of the percentile, `p99`.
        quantile: share of all requests, 0 to 1, that must be within the limit.
        limit_ns: from when a request was due to its last byte received.
    """

    name: str
    quantile: float
    limit_ns: int

    def __str__(self) -> str:
        unit = next(unit for unit in ("s", "ms", "us") if self.limit_ns >= _UNITS_NS[unit])
        return f"{self.name}={self.limit_ns / _UNITS_NS[unit]:g}{unit}"


class Found(Strict, frozen=True, kw_only=True):
    """What came of one objective in a run.

    Attributes:
        late_share: of all requests, 0 to 1.
        late_share_upper: its upper bound at 95 % confidence, were requests independent.
        met: whether it is at most what the objective allows.
        is_enough: whether there were requests enough to tell this percentile.
    """

    objective: str
    late_share: float
    late_share_upper: float
    met: bool
    is_enough: bool


def parse(texts: Sequence[str]) -> tuple[Objective, ...]:
    """Read `p99=50ms` and the like, several in one text by commas, raising `UsageError`."""
    objectives = [_objective(part.strip()) for text in texts for part in text.split(",")]
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--slo gives {name} twice", hint="keep the stricter one")
    return tuple(objectives)


def one_beat(rate_per_s: float) -> Objective:
    """99 % of a stream's requests are answered before its next one comes."""
    limit_ns = min(max(round(1e9 / rate_per_s), _MIN_LIMIT_NS), _MAX_LIMIT_NS)
    return Objective("p99", QUANTILES["p99"], limit_ns)


def judge(objective: Objective, latencies_ns: NDArray[np.int64], *, failed: int) -> Found:
    """Whether a run meets an objective.

    Args:
        objective: what is promised.
        latencies_ns: of the requests that were answered with outputs.
        failed: requests that were not.
    """
    total = len(latencies_ns) + failed
    late = int(np.count_nonzero(latencies_ns > objective.limit_ns)) + failed
    allowed = 1 - objective.quantile
    return Found(
        objective=str(objective),
        late_share=late / total if total else 1.0,
        late_share_upper=upper_bound(late, total),
        met=total > 0 and late <= allowed * total + 1e-9,
        is_enough=total * allowed >= _LATE_EXPECTED,
    )


def upper_bound(hits: int, total: int) -> float:
    """Upper end of the one-sided 95 % score interval of a share.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    if hits >= total:
        return 1.0
    share, weight = hits / total, _Z * _Z / total
    spread = _Z * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return min(1.0, (share + weight / 2 + spread) / (1 + weight))


def percentiles_ms(latencies_ns: NDArray[Any]) -> dict[str, float | None]:
    """p50 to p99.9 and the largest, in milliseconds; None where there was no answer."""
    if len(latencies_ns) == 0:
        return dict.fromkeys((*QUANTILES, "max"))
    cuts = np.percentile(latencies_ns, [100 * q for q in QUANTILES.values()]) / 1e6
    found = {name: float(cut) for name, cut in zip(QUANTILES, cuts, strict=True)}
    return {**found, "max": float(latencies_ns.max()) / 1e6}


def _objective(text: str) -> Objective:
    match = _FORM.fullmatch(text)
    if match is None or match[1] not in QUANTILES:
        raise UsageError(
            f"--slo {text!r} is not a percentile and a time",
            hint=f"write one of {', '.join(QUANTILES)}, then = and a time: p99=50ms, p50=800us",
        )
    limit_ns = round(float(match[2]) * _UNITS_NS[match[3]])
    if not _MIN_LIMIT_NS <= limit_ns <= _MAX_LIMIT_NS:
        raise UsageError(
            f"--slo {text!r}: the time must be 1us to 3600s", hint="as in p99=50ms or p50=800us"
        )
    return Objective(match[1], QUANTILES[match[1]], limit_ns)
