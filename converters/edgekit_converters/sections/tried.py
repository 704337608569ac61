"""Tried: every scheme that the search made, in order, with its outcome and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgekit_converters.report import BundleReport, Tried
from edgekit_converters.sections import Section
from edgekit_converters.sections.markup import clipped, code, fold, known, listed, table
from edgekit_converters.sections.numbers import NOT_MEASURED, count, megabytes, points, share, times

_SHOWN = 40
_REASON = 400
_HEAD = ("#", "scheme", "speed-up", "agreement", "drop", "size", "outcome")
_NUMBERS = (0, 2, 3, 4, 5)
_OPTIONAL = (3,)


def tried(found: BundleReport) -> Section | None:
    """The table, or None where nothing was tried or refused."""
    schemes = [entry for entry in found.tried if not entry.probe]
    probes = [entry for entry in found.tried if entry.probe]
    untried = [r for r in found.rejected if (r.scheme, r.engine) not in _keys(found.tried)]
    if not schemes and not untried:
        return None
    reasons = {(r.scheme, r.engine): r.reason for r in found.rejected}
    rows = [_row(i, entry, reasons) for i, entry in enumerate(schemes, start=1)]
    body = table(_HEAD, rows[:_SHOWN], numbers=_NUMBERS, optional=_OPTIONAL) if rows else ""
    if rest := rows[_SHOWN:]:
        body += fold(
            f"{len(rest)} more schemes", table(_HEAD, rest, numbers=_NUMBERS, optional=_OPTIONAL)
        )
    if probes:
        head = ("#", "probe", "engine", "relative error", "size")
        shown = table(head, _probe_rows(probes), numbers=(0, 3, 4))
        body += fold(f"{count(len(probes), 'probe')} of single blocks", shown)
    if untried:
        texts = (f"{r.scheme}{_on(r.engine)}: {clipped(r.reason, _REASON)}" for r in untried)
        body += f"<h3>Not tried</h3>{listed(texts)}"
    return Section("tried", "What was tried", body, _lead(found, len(schemes), len(probes)))


def _lead(found: BundleReport, schemes: int, probes: int) -> str:
    if schemes == 0:
        return "Nothing was made beside the model as it came."
    text = f"{count(schemes, 'scheme')} in the order in which they were made"
    if probes:
        text += f", and {count(probes, 'probe')} that saw what single blocks do"
    text += ". Figures are of the selection samples; drop is that of the metric."
    if found.truncated:
        text += " Truncated: the time limit ended the search before it was done."
    return text


def _row(number: int, entry: Tried, reasons: dict[tuple[str, str | None], str]) -> Sequence[str]:
    reason = "; ".join(entry.reasons) or reasons.get((entry.scheme, entry.engine), "")
    text = escape(clipped(reason.removeprefix("within the budget, but "), _REASON))
    if entry.chosen:
        outcome = f'<span class="tag ship">ships</span> {text}'
    elif entry.reasons:
        outcome = f'<span class="tag lost">refused</span> {text}'
    else:
        outcome = f'<span class="tag open">within budget</span> {text}'
    return (
        str(number),
        f"{code(clipped(entry.scheme, 200))}<br><small>{escape(entry.precision or 'as it came')}"
        f" on {escape(entry.engine)}</small>",
        known(times(entry.speedup)),
        known(share(entry.agreement)),
        known(points(entry.drop)),
        known(megabytes(entry.size_bytes)),
        outcome,
    )


def _probe_rows(probes: Sequence[Tried]) -> list[Sequence[str]]:
    return [
        (
            str(number),
            code(clipped(entry.scheme, 200)),
            escape(entry.engine),
            known(NOT_MEASURED if entry.noise is None else share(entry.noise**0.5)),
            known(megabytes(entry.size_bytes)),
        )
        for number, entry in enumerate(probes, start=1)
    ]


def _keys(entries: Sequence[Tried]) -> set[tuple[str, str | None]]:
    return {(entry.scheme, entry.engine) for entry in entries}


def _on(engine: str | None) -> str:
    return f" on {engine}" if engine else ""
