"""Plots: distributions, intervals and amounts as small SVG drawings from plain numbers.

Each function returns one drawing in the frame of `edgekit_converters.axes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgekit_converters.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    at_x,
    at_y,
    frame,
    horizontal,
    svg,
)

_NAMES_PX = 150
_MOST_DOTS = 600
_SHOWN = 0.995


def cloud(pairs: Sequence[tuple[float, float]], *, x: Axis, y: Axis, title: str) -> str:
    """Many small points around the diagonal where x equals y."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    parts = [
        frame(x, y),
        f'<line class="front" x1="{at_x(low, x):.1f}" y1="{at_y(low, y):.1f}"'
        f' x2="{at_x(high, x):.1f}" y2="{at_y(high, y):.1f}"/>',
    ]
    parts += [
        f'<circle class="dot" cx="{at_x(a, x):.1f}" cy="{at_y(b, y):.1f}" r="2.2"/>'
        for a, b in pairs
    ]
    return svg(parts, title)


def strips(rows: Sequence[tuple[str, Sequence[float], str]], *, label: str, title: str) -> str:
    """One row of dots for each named sequence of values, with its median as a bar."""
    values = sorted(v for _, row, _ in rows for v in row)
    # A single stall of the machine would else squeeze everything else to the left.
    high = values[min(int(len(values) * _SHOWN), len(values) - 1)]
    x = Axis(label=label, low=0.0, high=high * 1.05 or 1.0)
    height = TOP + BOTTOM + 56 * len(rows)
    parts = [horizontal(x, height)]
    for number, (name, row, style) in enumerate(rows):
        middle = TOP + 56 * number + 34
        parts.append(
            f'<text class="name" x="{LEFT}" y="{middle - 20}">{escape(_short(name, 60))}</text>'
        )
        for position, value in enumerate(_thinned(row)):
            # A fixed pattern spreads dots of one value; it carries no meaning.
            offset = (position * 7 % 13 - 6) * 1.6
            parts.append(
                f'<circle class="{escape(style)} faint" cx="{at_x(value, x):.1f}"'
                f' cy="{middle + offset:.1f}" r="2"/>'
            )
        median = at_x(sorted(row)[len(row) // 2], x)
        parts.append(
            f'<line class="median" x1="{median:.1f}" x2="{median:.1f}"'
            f' y1="{middle - 14}" y2="{middle + 14}"/>'
        )
    return svg(parts, title, height=height)


def histogram(counts: Sequence[int], *, high: float, label: str, title: str) -> str:
    """Bars of equal width from 0 to `high`."""
    x = Axis(label=label, low=0.0, high=high)
    y = Axis(label="samples", low=0.0, high=float(max(counts) or 1))
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    parts = [frame(x, y)]
    for position, number in enumerate(counts):
        top = at_y(number, y)
        parts.append(
            f'<rect class="bar" x="{LEFT + position * width:.1f}" y="{top:.1f}"'
            f' width="{max(width - 1, 1):.1f}" height="{HEIGHT - BOTTOM - top:.1f}"/>'
        )
    return svg(parts, title)


def intervals(
    rows: Sequence[tuple[str, float, tuple[float, float] | None, str]],
    *,
    x: Axis,
    title: str,
    limit: float | None = None,
) -> str:
    """A point and its interval for each named row; `limit` draws a line across all."""
    height = TOP + BOTTOM + 34 * len(rows)
    parts = [horizontal(x, height, left=_NAMES_PX)]
    if limit is not None:
        at = at_x(limit, x, left=_NAMES_PX)
        parts.append(
            f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        )
    for number, (name, value, ends, style) in enumerate(rows):
        middle = TOP + 34 * number + 17
        parts.append(_row_name(name, middle + 4))
        if ends is not None:
            low, high = (at_x(end, x, left=_NAMES_PX) for end in ends)
            parts.append(
                f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}"'
                f' y2="{middle}"/>'
            )
        parts.append(
            f'<circle class="{escape(style)}" cx="{at_x(value, x, left=_NAMES_PX):.1f}"'
            f' cy="{middle}" r="5.5"/>'
        )
    return svg(parts, title, height=height)


def bars(rows: Sequence[tuple[str, Sequence[tuple[float, str, str]]]], *, title: str) -> str:
    """Bars for each named row, on one scale.

    Args:
        rows: names, each with its bars: length, CSS class, and the text at its end.
    """
    most = max((length for _, each in rows for length, _, _ in each), default=1.0) or 1.0
    space = WIDTH - _NAMES_PX - 80
    parts: list[str] = []
    top = float(TOP)
    for name, each in rows:
        parts.append(_row_name(name, top + 5.5 * len(each) + 3))
        for length, style, text in each:
            width = max(space * length / most, 0.0)
            parts.append(
                f'<rect class="{escape(style)}" x="{_NAMES_PX}" y="{top:.1f}"'
                f' width="{width:.1f}" height="9" rx="1.5"/>'
                f'<text class="tick" x="{_NAMES_PX + width + 5:.1f}" y="{top + 8.5:.1f}">'
                f"{escape(text)}</text>"
            )
            top += 11
        top += 9
    return svg(parts, title, height=top)


def mirrored(
    columns: Sequence[tuple[str, float, float, str, str]], *, names: tuple[str, str], title: str
) -> str:
    """For each column a bar up and, on a scale of its own, a bar down.

    Args:
        columns: text below, height up (negative is drawn as 0), height down, CSS class of the bar
            up, and what a pointer that rests on it is told.
        names: of what goes up and of what goes down.
    """
    highest = max((up for _, up, _, _, _ in columns), default=0.0) or 1.0
    deepest = max((down for _, _, down, _, _ in columns), default=0.0) or 1.0
    base, above, below = 170.0, 140.0, 64.0
    step = (WIDTH - LEFT - RIGHT) / max(len(columns), 1)
    width = min(step * 0.72, 40.0)
    parts = [f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    for name, at in ((names[0], base - above / 2), (names[1], base + 20 + below / 2)):
        parts.append(
            f'<text class="axis" transform="translate(12 {at:.0f}) rotate(-90)"'
            f' text-anchor="middle">{escape(name)}</text>'
        )
    for text, at in (
        (f"{100 * highest:.3g} %", base - above + 4),
        (f"{100 * deepest:.3g} %", base + 20 + below),
    ):
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at:.0f}" text-anchor="end">{text}</text>'
        )
    for number, (name, up, down, style, told) in enumerate(columns):
        middle = LEFT + step * (number + 0.5)
        tall, deep = above * max(up, 0.0) / highest, below * max(down, 0.0) / deepest
        parts.append(
            f'<g><title>{escape(told)}</title><rect class="{escape(style)}"'
            f' x="{middle - width / 2:.1f}" y="{base - tall:.1f}" width="{width:.1f}"'
            f' height="{tall:.1f}"/><text class="tick" x="{middle:.1f}" y="{base + 14}"'
            f' text-anchor="middle">{escape(name)}</text><rect class="share"'
            f' x="{middle - width / 2:.1f}" y="{base + 20}" width="{width:.1f}"'
            f' height="{deep:.1f}"/></g>'
        )
    return svg(parts, title, height=base + 20 + below + 12)


def lines(rows: Sequence[Sequence[float]], *, title: str) -> str:
    """Each row of values as a line across the drawing, one below the other."""
    height = 110
    room = (height - 8) / max(len(rows), 1)
    parts = []
    for number, row in enumerate(rows):
        low, high = min(row), max(row)
        span = (high - low) or 1.0
        base = 4 + room * (number + 1)
        step = WIDTH / max(len(row) - 1, 1)
        path = " ".join(
            f"{i * step:.1f},{base - (value - low) / span * room * 0.9:.1f}"
            for i, value in enumerate(row)
        )
        parts.append(f'<polyline class="signal" points="{path}"/>')
    return svg(parts, title, height=height)


def _row_name(name: str, y: float) -> str:
    return (
        f'<text class="name" x="{_NAMES_PX - 8}" y="{y:.1f}" text-anchor="end">'
        f"<title>{escape(name)}</title>{escape(_short(name, 20))}</text>"
    )


def _thinned(row: Sequence[float]) -> Sequence[float]:
    """At most so many values that a page stays small, evenly chosen."""
    return row if len(row) <= _MOST_DOTS else row[:: -(-len(row) // _MOST_DOTS)]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
