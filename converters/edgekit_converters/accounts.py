"""Accounts: what was tried, what was rejected and why, from what was found of each scheme.

Pure functions. Everything that was made is told, also what did not ship; figures are those of the
selection samples, by which the search chose.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from edgekit_converters import search
from edgekit_converters.findings import Record
from edgekit_converters.report import Rejected, Tried
from edgekit_converters.search import Trial


def tried(
    history: Sequence[Trial],
    records: Mapping[str, Record],
    *,
    engine: str,
    chosen: Collection[str],
) -> Iterator[Tried]:
    """Every scheme that was made or attempted, in order.

    Args:
        records: what was found, by name of the scheme.
        chosen: names of the schemes that ship.
    """
    accepted = [trial for trial in history if trial.accepted]
    points = [(trial.cost or float("inf"), 1.0 - (trial.headroom or 0.0)) for trial in accepted]
    front = {
        trial.scheme.name
        for trial, best in zip(accepted, search.pareto(points), strict=True)
        if best
    }
    for trial in history:
        record = records[trial.scheme.name]
        found = record.selection
        timed = record.timing is not None and trial.cost
        yield Tried(
            scheme=trial.scheme.name,
            engine=engine,
            precision=trial.scheme.precision,
            size_bytes=record.size_bytes or None,
            speedup=1 / trial.cost if timed and trial.cost else None,
            agreement=found.agreement if found else None,
            drop=found.metric.drop if found else None,
            noise=record.noise,
            probe=trial.probe,
            chosen=trial.accepted and trial.scheme.name in chosen,
            pareto=trial.accepted and trial.scheme.name in front,
            reasons=trial.reasons,
        )


def rejected(entries: Sequence[Tried]) -> tuple[Rejected, ...]:
    """What does not ship of everything that was tried, probes aside."""
    chosen = " and ".join(entry.scheme for entry in entries if entry.chosen)
    before = f"{chosen} ranked before it" if chosen else "not chosen"
    return tuple(
        Rejected(
            scheme=entry.scheme,
            reason="; ".join(entry.reasons) or _known(entry, before),
            engine=entry.engine,
            speedup=entry.speedup,
            agreement=entry.agreement,
        )
        for entry in entries
        if not entry.chosen and not entry.probe
    )


def _known(entry: Tried, before: str) -> str:
    return before if entry.drop is None else f"within the budget, but {before}"


def told(trial: Trial, record: Record) -> str:
    """A trial in one line for whoever watches."""
    found = record.selection
    parts = [trial.scheme.name]
    if record.timing is not None and trial.cost:
        parts.append(f"{1 / trial.cost:.2f}x")
    if found is not None and found.agreement is not None:
        parts.append(f"agreement {found.agreement:.3f}")
    elif found is not None:
        parts.append(f"{found.metric.name} {found.metric.value:.4g}")
    return ", ".join([*parts, *trial.reasons])
