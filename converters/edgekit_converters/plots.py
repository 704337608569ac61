"""Plots: small SVG drawings from plain numbers, styled by the page that holds them.

Each function returns one `<svg>` that scales with its column, carries a title for screen readers,
and takes its colours from CSS classes, so that it follows a light or dark page. Texts are escaped
here; no caller passes markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10

import msgspec

WIDTH, HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 14, 44
_TICKS = 5
_TEXT_PX = 6.6


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A point of a scatter plot.

    Attributes:
        style: CSS class: `ship`, `float` or `lost`.
        low, high: ends of an interval around `y`, where there is one.
    """

    x: float
    y: float
    label: str
    style: str
    low: float | None = None
    high: float | None = None


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One axis: its text and the values at its ends."""

    label: str
    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value stands, 0 to 1."""
        span = self.high - self.low
        return 0.5 if span == 0 else min(max((value - self.low) / span, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / _TICKS
        unit = 10.0 ** floor(log10(raw))
        step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
        first = ceil(self.low / step - 1e-9)
        count = floor(self.high / step + 1e-9) - first + 1
        return [(first + i) * step for i in range(count)]


def scatter(points: Sequence[Point], *, x: Axis, y: Axis, title: str, front: bool = False) -> str:
    """Points with labels; `front` joins those that no other point beats (less x, more y)."""
    parts = [_frame(x, y)]
    if front and len(best := pareto(points)) > 1:
        path = " ".join(f"{_x(p.x, x):.1f},{_y(p.y, y):.1f}" for p in best)
        parts.append(f'<polyline class="front" points="{path}"/>')
    taken: list[tuple[float, float, float]] = [
        (_x(p.x, x) - 6, _x(p.x, x) + 6, _y(p.y, y) + 4) for p in points
    ]
    labels: list[str] = []
    for point in points:
        cx, cy = _x(point.x, x), _y(point.y, y)
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line class="interval" x1="{cx:.1f}" x2="{cx:.1f}"'
                f' y1="{_y(point.low, y):.1f}" y2="{_y(point.high, y):.1f}"/>'
            )
        parts.append(f'<circle class="{escape(point.style)}" cx="{cx:.1f}" cy="{cy:.1f}" r="5"/>')
        labels.append(_label(point.label, cx, cy, taken))
    return _svg([*parts, *labels], title)


def cloud(pairs: Sequence[tuple[float, float]], *, x: Axis, y: Axis, title: str) -> str:
    """Many small points around the diagonal where x equals y."""
    parts = [_frame(x, y)]
    low, high = max(x.low, y.low), min(x.high, y.high)
    parts.append(
        f'<line class="front" x1="{_x(low, x):.1f}" y1="{_y(low, y):.1f}"'
        f' x2="{_x(high, x):.1f}" y2="{_y(high, y):.1f}"/>'
    )
    parts += [
        f'<circle class="dot" cx="{_x(a, x):.1f}" cy="{_y(b, y):.1f}" r="2.2"/>' for a, b in pairs
    ]
    return _svg(parts, title)


def strips(rows: Sequence[tuple[str, Sequence[float], str]], *, label: str, title: str) -> str:
    """One row of dots for each named sequence of values, with its median as a bar."""
    values = sorted(v for _, row, _ in rows for v in row)
    # A single stall of the machine would else squeeze everything else to the left.
    high = values[min(int(len(values) * 0.995), len(values) - 1)]
    x = Axis(label=label, low=0.0, high=high * 1.05)
    height = _TOP + _BOTTOM + 56 * len(rows)
    parts = [_x_axis(x, height)]
    for number, (name, row, style) in enumerate(rows):
        middle = _TOP + 56 * number + 34
        parts.append(f'<text class="name" x="{_LEFT}" y="{middle - 20}">{escape(name)}</text>')
        for position, value in enumerate(row):
            # A fixed pattern spreads dots of one value; it carries no meaning.
            offset = (position * 7 % 13 - 6) * 1.6
            parts.append(
                f'<circle class="{escape(style)} faint" cx="{_x(value, x):.1f}"'
                f' cy="{middle + offset:.1f}" r="2"/>'
            )
        median = _x(sorted(row)[len(row) // 2], x)
        parts.append(
            f'<line class="median" x1="{median:.1f}" x2="{median:.1f}"'
            f' y1="{middle - 14}" y2="{middle + 14}"/>'
        )
    return _svg(parts, title, height=height)


def histogram(counts: Sequence[int], *, high: float, label: str, title: str) -> str:
    """Bars of equal width from 0 to `high`."""
    x = Axis(label=label, low=0.0, high=high)
    y = Axis(label="samples", low=0.0, high=float(max(counts) or 1))
    width = (WIDTH - _LEFT - _RIGHT) / len(counts)
    parts = [_frame(x, y)]
    for position, count in enumerate(counts):
        top = _y(count, y)
        parts.append(
            f'<rect class="bar" x="{_LEFT + position * width:.1f}" y="{top:.1f}"'
            f' width="{max(width - 1, 1):.1f}" height="{HEIGHT - _BOTTOM - top:.1f}"/>'
        )
    return _svg(parts, title)


def bars(rows: Sequence[tuple[str, float, float]], *, names: tuple[str, str], title: str) -> str:
    """Two bars for each named row, on one scale; each bar ends in its value."""
    most = max((max(a, b) for _, a, b in rows), default=1.0) or 1.0
    left, step = 150, 30
    space = WIDTH - left - 60
    parts = []
    for number, (name, *pair) in enumerate(rows):
        top = _TOP + number * step
        parts.append(f'<text class="name" x="{left - 8}" y="{top + 15}" text-anchor="end">')
        parts.append(f"{escape(_short(name, 20))}</text>")
        for row, (value, style) in enumerate(zip(pair, ("float", "ship"), strict=True)):
            width = space * value / most
            y = top + row * 11
            parts.append(
                f'<rect class="{style}" x="{left}" y="{y}" width="{width:.1f}" height="9">'
                f"<title>{escape(names[row])}: {value:g}</title></rect>"
                f'<text class="tick" x="{left + width + 4:.1f}" y="{y + 8}">{value:g}</text>'
            )
    return _svg(parts, title, height=_TOP + len(rows) * step + 6)


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both: less x and more y; by x."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def around(label: str, values: Sequence[float], *, low: float | None = None) -> Axis:
    """An axis that shows all values with some air; `low` fixes its lower end."""
    smallest, largest = min(values), max(values)
    air = (largest - smallest) * 0.12 or abs(largest) * 0.1 or 1.0
    return Axis(label=label, low=smallest - air if low is None else low, high=largest + air)


def _frame(x: Axis, y: Axis) -> str:
    parts = [_x_axis(x, HEIGHT)]
    for tick in y.ticks():
        height = _y(tick, y)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}"'
            f' y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">'
            f"{tick:g}</text>"
        )
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text class="axis" transform="translate(14 {middle:.0f}) rotate(-90)"'
        f' text-anchor="middle">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _x_axis(x: Axis, height: float) -> str:
    base = height - _BOTTOM
    parts = [f'<line class="base" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>']
    parts += [
        f'<text class="tick" x="{_x(tick, x):.1f}" y="{base + 16}" text-anchor="middle">'
        f"{tick:g}</text>"
        for tick in x.ticks()
    ]
    middle = (WIDTH - _RIGHT + _LEFT) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{height - 8}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
    )
    return "".join(parts)


def _label(text: str, cx: float, cy: float, taken: list[tuple[float, float, float]]) -> str:
    """A text beside its point: the first place around it that is free and within the frame.

    Args:
        taken: left end, right end and height of the texts that stand already; this one is added.
    """
    width = len(text) * _TEXT_PX
    left, right = cx - 9 - width, cx + 9
    places = [(x, cy + 4 + 13 * row) for row in (0, -1, 1, -2, 2, 3, 4, 5) for x in (right, left)]
    inside = [(x, y) for x, y in places if x >= _LEFT and x + width <= WIDTH - 2] or places
    free = [
        (x, y)
        for x, y in inside
        if all(abs(y - v) >= 13 or x >= high or x + width <= low for low, high, v in taken)
    ]
    x, y = (free or inside)[0]
    taken.append((x, x + width, y))
    return f'<text class="name" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(parts: Sequence[str], title: str, *, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _x(value: float, axis: Axis) -> float:
    return _LEFT + axis.share(value) * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, axis: Axis) -> float:
    return HEIGHT - _BOTTOM - axis.share(value) * (HEIGHT - _TOP - _BOTTOM)
