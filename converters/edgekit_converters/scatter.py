"""Scatter: what each of many candidates costs and loses, with the front that nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from edgekit_converters.axes import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Axis, at_x, at_y, frame, svg

_TEXT_PX = 6.4
_RADIUS = {"ship": 6.5, "float": 6.5}


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A point.

    Attributes:
        label: stands beside it; empty for none.
        style: CSS class: `ship`, `float`, `open` or `lost`.
        title: what a pointer that rests on it is told.
    """

    x: float
    y: float
    label: str
    style: str
    title: str = ""


def scatter(
    points: Sequence[Point],
    *,
    x: Axis,
    y: Axis,
    title: str,
    front: Sequence[Point] = (),
    limit: tuple[float, str] | None = None,
) -> str:
    """Points with labels.

    Args:
        front: points to join by a line, in order.
        limit: a height to draw a line at, and its text.
    """
    parts = [frame(x, y)]
    taken = [(at_x(p.x, x) - 6, at_x(p.x, x) + 6, at_y(p.y, y) + 4) for p in points]
    if limit is not None:
        parts.append(_limit(*limit, y, taken))
    if len(front) > 1:
        path = " ".join(f"{at_x(p.x, x):.1f},{at_y(p.y, y):.1f}" for p in front)
        parts.append(f'<polyline class="front" points="{path}"/>')
    marks: list[str] = []
    # What ships is drawn last, and labelled first.
    for point in sorted(points, key=lambda p: p.style in _RADIUS):
        radius = _RADIUS.get(point.style, 4.5)
        marks.append(
            f'<circle class="{escape(point.style)}" cx="{at_x(point.x, x):.1f}"'
            f' cy="{at_y(point.y, y):.1f}" r="{radius}"><title>{escape(point.title)}</title>'
            "</circle>"
        )
    labels = [
        _label(point, at_x(point.x, x), at_y(point.y, y), taken)
        for point in sorted(points, key=lambda p: p.style not in _RADIUS)
        if point.label
    ]
    return svg([*parts, *marks, *labels], title)


def pareto(points: Sequence[Point], *, more_x: bool) -> list[Point]:
    """The points that no other beats in both, by x.

    Args:
        more_x: more of x is better, else less; less of y always is.
    """
    sign = -1 if more_x else 1
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (sign * p.x, p.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return sorted(best, key=lambda p: p.x)


def _limit(value: float, text: str, y: Axis, taken: list[tuple[float, float, float]]) -> str:
    """A line across, with its text below it or, where there is no room, above."""
    height = at_y(value, y)
    below = height + 13 if height + 13 < HEIGHT - BOTTOM else height - 5
    taken.append((LEFT + 6, LEFT + 6 + len(text) * _TEXT_PX, below))
    return (
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}"'
        f' y2="{height:.1f}"/><text class="tick" x="{LEFT + 6}" y="{below:.1f}">'
        f"{escape(text)}</text>"
    )


def _label(point: Point, cx: float, cy: float, taken: list[tuple[float, float, float]]) -> str:
    """A text beside its point: the first place around it that is free and within the frame.

    Args:
        taken: left end, right end and height of the texts that stand already; this one is added.
    """
    width = len(point.label) * _TEXT_PX
    left, right = cx - 10 - width, cx + 10
    places = [(x, cy + 4 + 13 * row) for row in (0, -1, 1, -2, 2, 3, 4, 5) for x in (right, left)]
    inside = [(x, y) for x, y in places if x >= LEFT and x + width <= WIDTH - 2] or places
    free = [
        (x, y)
        for x, y in inside
        if all(abs(y - v) >= 13 or x >= high or x + width <= low for low, high, v in taken)
    ]
    x, y = (free or inside)[0]
    taken.append((x, x + width, y))
    kind = "name" if point.style in _RADIUS else "num"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(point.label)}</text>'
