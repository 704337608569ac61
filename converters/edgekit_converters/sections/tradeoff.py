"""Trade-off: accuracy against latency of everything that was tried, and the front.

Where nothing was timed, as the board is not at hand, size stands in the place of latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekit.recipe import Budget
from edgekit_converters.axes import Axis, around
from edgekit_converters.report import BundleReport, Tried
from edgekit_converters.scatter import Point, pareto, scatter
from edgekit_converters.sections import Section, is_float
from edgekit_converters.sections.markup import clipped, explained
from edgekit_converters.sections.numbers import count, megabytes, points, share, times
from edgekit_converters.workshop import Workshop

_KEYS = (
    ("ship", "ships"),
    ("float", "the model as it came"),
    ("open", "within the budget, not chosen"),
    ("lost", "refused"),
)
_MOST_NUMBERED = 12
# Beyond this multiple of what the budget allows, all that counts is that it is far beyond.
_FAR = 12


@dataclass(frozen=True)
class _Spot:
    number: int
    entry: Tried
    x: float
    loss: float


def tradeoff(found: BundleReport, workshop: Workshop) -> Section | None:
    """The drawing, or None where fewer than two points are known."""
    timed = any(entry.speedup is not None for entry in found.tried)
    by_agreement = any(entry.agreement is not None for entry in found.tried)
    spots = list(_spots(found.tried, timed=timed, by_agreement=by_agreement))
    floats = list(_floats(found, timed=timed))
    if not spots:
        return None
    limit, limit_text = _limit(workshop.recipe.budget, by_agreement=by_agreement)
    ships = [_point(spot, label=_name(spot.entry, found)) for spot in spots if spot.entry.chosen]
    # What the data could not prove ships beside float, with the reason why.
    accepted = [spot for spot in spots if spot.entry.chosen or not spot.entry.reasons]
    others = [spot for spot in spots if not spot.entry.chosen]
    numbered = {spot.number for spot in _nearest(others, accepted)}
    drawn = [
        *(_point(s, label=f"#{s.number}" if s.number in numbered else "") for s in others),
        *floats,
        *ships,
    ]
    allowed = [*(_point(spot, label="") for spot in accepted), *floats]
    drawing = scatter(
        drawn,
        x=_x_axis(drawn, timed=timed),
        y=_y_axis(drawn, limit, by_agreement=by_agreement),
        title="Loss against speed-up" if timed else "Loss against size",
        front=pareto(allowed, more_x=timed),
        limit=(limit, limit_text),
    )
    better = (
        "Right is faster"
        if timed
        else "Nothing was timed, as this is not the board; left is smaller"
    )
    caption = (
        f"{better}, up is closer to the float model. The dashed line joins what nothing else within"
        " the budget beats. Numbers are those of the table below."
    )
    keys = [(style, text) for style, text in _KEYS if any(p.style == style for p in drawn)]
    lead = (
        f"{count(len(spots), 'scheme')} on {found.data.selection} selection samples, by which the"
        " search chose. What ships is judged further down, on samples that nothing was chosen by."
    )
    title = "Accuracy against latency" if timed else "Accuracy against size"
    return Section("tradeoff", title, explained(drawing, keys, caption), lead)


def _spots(tried: Sequence[Tried], *, timed: bool, by_agreement: bool) -> Iterable[_Spot]:
    number = 0
    for entry in tried:
        if entry.probe:
            continue
        number += 1
        loss = entry.drop
        if by_agreement:
            loss = None if entry.agreement is None else 1.0 - entry.agreement
        x = entry.speedup if timed else (entry.size_bytes or 0) / 1e6 or None
        if x is not None and loss is not None:
            yield _Spot(number, entry, x, max(loss, 0.0))


def _floats(found: BundleReport, *, timed: bool) -> Iterable[Point]:
    floats = [variant for variant in found.variants if is_float(variant)]
    for variant in floats[:1] if timed else floats:
        x = 1.0 if timed else variant.size_bytes / 1e6
        yield Point(x=x, y=0.0, label=variant.name, style="float", title="the model as it came")


def _point(spot: _Spot, *, label: str) -> Point:
    entry = spot.entry
    style = "ship" if entry.chosen else "lost" if entry.reasons else "open"
    known = [
        f"#{spot.number} {entry.scheme}",
        f"speed-up {times(entry.speedup)}",
        f"agreement {share(entry.agreement)}" if entry.agreement is not None else "",
        f"drop {points(entry.drop)}" if entry.drop is not None else "",
        megabytes(entry.size_bytes),
        *entry.reasons,
    ]
    title = clipped(", ".join(part for part in known if part), 300)
    return Point(x=spot.x, y=spot.loss, label=label, style=style, title=title)


def _name(entry: Tried, found: BundleReport) -> str:
    """What the variant is called that an entry became."""
    same = (v.name for v in found.variants if (v.scheme, v.engine) == (entry.scheme, entry.engine))
    return next(same, clipped(entry.scheme, 28))


def _nearest(others: Sequence[_Spot], accepted: Sequence[_Spot]) -> list[_Spot]:
    """Those worth a number in the drawing: what is accepted, then the least loss."""
    within = {spot.number for spot in accepted}
    ranked = sorted(others, key=lambda s: (s.number not in within, s.loss, s.number))
    return ranked[:_MOST_NUMBERED]


def _limit(budget: Budget, *, by_agreement: bool) -> tuple[float, str]:
    if by_agreement:
        loss = 1.0 - budget.min_agreement
        return loss, f"budget: agreement ≥ {100 * budget.min_agreement:g} %"
    return budget.accuracy_drop, f"budget: drop ≤ {100 * budget.accuracy_drop:g} points"


def _x_axis(drawn: Sequence[Point], *, timed: bool) -> Axis:
    values = [point.x for point in drawn]
    if not timed:
        return around("size, MB", values, low=0.0)
    return around(
        "speed-up against float", [*values, 1.0], unit="times", low=min(0.8, *values) * 0.9
    )


def _y_axis(drawn: Sequence[Point], limit: float, *, by_agreement: bool) -> Axis:
    worst = max(limit * 1.6, min(max(point.y for point in drawn), limit * _FAR) * 1.1, 0.01)
    label = "answers that differ from float's" if by_agreement else "drop of the metric"
    return Axis(label=label, low=worst, high=0.0, scale="root", unit="share")
