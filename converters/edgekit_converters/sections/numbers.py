"""Numbers: figures as people read them, with their unit and no more digits than they have."""

from __future__ import annotations

from math import isfinite

from edgekit_converters.evaluate import Interval

NOT_MEASURED = "not measured"

_METRICS = {
    "agreement": "agreement",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "cosine": "cosine similarity",
    "retrieval": "retrieval",
    "iou": "mean IoU",
    "edit_distance": "sequence similarity",
    "map50": "mAP at IoU .5",
    "map": "mAP",
    "box_agreement": "agreement of boxes",
}


def share(value: float | None) -> str:
    """0.9583 as 95.8 %; what is nearly all or nearly nothing is not rounded to it."""
    if value is None:
        return NOT_MEASURED
    if not isfinite(value):
        return "not a number"
    text = f"{100 * value:.1f}"
    if text in ("100.0", "0.0", "-0.0") and value not in (0.0, 1.0):
        text = f"{100 * value:.2g}" if abs(value) < 0.5 else f"{100 * value:.4g}"
    return f"{text.removesuffix('.0')} %"


def score(value: float) -> str:
    """A metric: three decimals, or more where they would hide that something was lost."""
    text = f"{value:.3f}"
    return f"{value:.4f}" if text == "1.000" and value < 1 else text


def times(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def milliseconds(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    if value < 1:
        return f"{value:.3f} ms"
    return f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"


def megabytes(size_bytes: int | None) -> str:
    if size_bytes is None:
        return NOT_MEASURED
    if size_bytes < 100_000:
        return f"{size_bytes / 1e3:.1f} kB"
    return f"{size_bytes / 1e6:.2f} MB"


def points(value: float | None) -> str:
    """A difference of two shares, 0.013 as +1.3 points."""
    if value is None:
        return NOT_MEASURED
    return f"{100 * value:+.1f} points" if abs(value) >= 5e-4 else "0 points"


def within(ends: Interval | None, *, as_share: bool = True) -> str:
    """A 95 % interval."""
    if ends is None:
        return "no interval: all samples belong to one group"
    low, high = ends
    if as_share:
        return f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return f"95 % interval {low:.3g} to {high:.3g}"


def probability(p: float | None) -> str:
    """A p value."""
    if p is None:
        return NOT_MEASURED
    return "p < 0.001" if p < 1e-3 else f"p = {p:.2g}"


def metric_name(name: str) -> str:
    """What people call a metric."""
    return _METRICS.get(name, name)


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
