"""Axes: where a number stands in a drawing, and the frame around it.

A drawing is one `<svg>` of fixed proportions that scales with its column, carries a title for
screen readers and takes its colours from CSS classes, so that it follows a light or dark page.
Texts are escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10, sqrt
from typing import Literal

import msgspec

WIDTH, HEIGHT = 520, 280
LEFT, RIGHT, TOP, BOTTOM = 68, 20, 14, 44
_TICKS = 5
_LEAST_GAP = 0.11
_ROOT_TICKS = (0.0, *(m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)))


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One axis: its text and the values at its ends, which may fall.

    Attributes:
        scale: `root` spreads small values, as losses are where they matter; only from 0 on.
        unit: how ticks are written: `share` as per cent, `times` as 2x.
    """

    label: str
    low: float
    high: float
    scale: Literal["linear", "root"] = "linear"
    unit: Literal["", "share", "times"] = ""

    def share(self, value: float) -> float:
        """Where a value stands, 0 to 1."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        if low == high:
            return 0.5
        return min(max((self._scaled(value) - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        low, high = min(self.low, self.high), max(self.low, self.high)
        if high <= low:
            return [low]
        if self.scale == "root":
            return self._apart([tick for tick in _ROOT_TICKS if low <= tick <= high])
        raw = (high - low) / _TICKS
        unit = 10.0 ** floor(log10(raw))
        step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
        first = ceil(low / step - 1e-9)
        number = floor(high / step + 1e-9) - first + 1
        return [(first + i) * step for i in range(number)]

    def text(self, tick: float) -> str:
        """A tick as it is written."""
        if self.unit == "share":
            return f"{100 * tick:.6g} %"
        return f"{tick:g}x" if self.unit == "times" else f"{tick:g}"

    def _scaled(self, value: float) -> float:
        return sqrt(max(value, 0.0)) if self.scale == "root" else value

    def _apart(self, ticks: Sequence[float]) -> list[float]:
        """Those that leave room for each other's texts."""
        first, *rest = ticks
        kept = [first]
        for tick in rest[::-1]:
            if all(abs(self.share(tick) - self.share(other)) >= _LEAST_GAP for other in kept):
                kept.append(tick)
        return sorted(kept)


def around(
    label: str,
    values: Sequence[float],
    *,
    low: float | None = None,
    high: float | None = None,
    unit: Literal["", "share", "times"] = "",
) -> Axis:
    """An axis that shows all values with some air; `low` and `high` fix or bound its ends."""
    smallest, largest = min(values), max(values)
    air = (largest - smallest) * 0.12 or abs(largest) * 0.1 or 1.0
    end = largest + air
    return Axis(
        label=label,
        low=smallest - air if low is None else low,
        high=end if high is None else min(end, high),
        unit=unit,
    )


def frame(x: Axis, y: Axis) -> str:
    """Both axes with their ticks, and lines to read heights by."""
    parts = [horizontal(x, HEIGHT)]
    for tick in y.ticks():
        height = at_y(tick, y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}"'
            f' y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">'
            f"{escape(y.text(tick))}</text>"
        )
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(
        f'<text class="axis" transform="translate(12 {middle:.0f}) rotate(-90)"'
        f' text-anchor="middle">{escape(y.label)}</text>'
    )
    return "".join(parts)


def horizontal(x: Axis, height: float, *, left: float = LEFT) -> str:
    """The lower axis of a drawing of this height."""
    base = height - BOTTOM
    parts = [f'<line class="base" x1="{left}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    parts += [
        f'<text class="tick" x="{at_x(tick, x, left=left):.1f}" y="{base + 16}"'
        f' text-anchor="middle">{escape(x.text(tick))}</text>'
        for tick in x.ticks()
    ]
    middle = (WIDTH - RIGHT + left) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{height - 8}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
    )
    return "".join(parts)


def at_x(value: float, axis: Axis, *, left: float = LEFT) -> float:
    return left + axis.share(value) * (WIDTH - left - RIGHT)


def at_y(value: float, axis: Axis) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def svg(parts: Sequence[str], title: str, *, height: float = HEIGHT) -> str:
    """The drawing."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
