"""Placement: what the artefacts consist of, where that runs, and by which evidence it is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgekit_converters.report import (
    BundleReport,
    Details,
    OperatorUse,
    VariantDetail,
    VariantReport,
)
from edgekit_converters.sections import Section
from edgekit_converters.sections.markup import absent, facts, fold, table
from edgekit_converters.sections.numbers import count, share
from edgekit_converters.usage import int8_share

_MOST_OPERATORS = 60
_MEANING = {
    "executed": "Ran here, on the machine that it is for.",
    "simulated": "Its arithmetic was run elsewhere: by the same engine on another machine, by the"
    " vendor's simulator, or as what the compiler was given. This shows answers, no speed.",
    "estimated": "Computed by a model of the hardware.",
    "linted": "Checked against the rules of the engine, not run on it.",
}


def placement(found: BundleReport, details: Details) -> Section:
    """Where each variant runs, its operators, and what is known by which evidence."""
    by_name = {detail.name: detail for detail in details.variants}
    head = ("variant", "engine", "runs on", "MACs there", "fallback", "MACs in 8 bits", "known by")
    rows = [_where(variant, by_name[variant.name]) for variant in found.variants]
    body = table(head, rows, numbers=(3, 5)) + _operators(details.variants) + _evidence(found)
    lead = "What each artefact consists of and where the board runs it."
    return Section("placement", "Where it runs", body, lead)


def _where(variant: VariantReport, detail: VariantDetail) -> Sequence[str]:
    known = variant.placement
    providers = ", ".join(detail.providers)
    if known.fallback_ops is None:
        fallback = absent()
    else:
        fallback = escape(", ".join(known.fallback_ops) or "none")
    on = f"{escape(variant.accelerator)}<br><small>{escape(providers)}</small>"
    engine = escape(variant.engine)
    if variant.rerun_in is not None:
        engine += f"<br><small>also run in {escape(variant.rerun_in)}</small>"
    in_int8 = int8_share(detail.operators)
    return (
        f"<b>{escape(variant.name)}</b>",
        engine,
        on,
        absent() if known.accelerator_macs is None else share(known.accelerator_macs),
        fallback,
        absent() if in_int8 is None else share(in_int8),
        _level(variant.figure_evidence.placement),
    )


def _operators(variants: Sequence[VariantDetail]) -> str:
    order = list(dict.fromkeys(use.operator for v in variants for use in v.operators))
    totals = {v.name: sum(use.macs or 0 for use in v.operators) for v in variants}
    found = {v.name: {use.operator: use for use in v.operators} for v in variants}
    order.sort(key=lambda name: -max(_macs(found[v.name].get(name)) for v in variants))
    rows = [
        (
            f"<code>{escape(name)}</code>",
            *(_use(found[v.name].get(name), totals[v.name]) for v in variants),
        )
        for name in order
    ]
    head = ("operator", *(v.name for v in variants))
    shown = table(head, rows[:_MOST_OPERATORS])
    if rest := rows[_MOST_OPERATORS:]:
        shown += fold(f"{count(len(rest), 'more type')}", table(head, rest))
    return (
        "<h3>Operators</h3><p>Nodes of each type in the file, before the engine fuses them; their"
        f" share of the multiply-accumulates, and how many of those are done in 8 bits.</p>{shown}"
    )


def _use(use: OperatorUse | None, total: int) -> str:
    if use is None or use.nodes == 0:
        return '<i class="none">none</i>'
    text = str(use.nodes)
    if use.macs and total:
        text += f" <small>{share(use.macs / total)} of MACs"
        if use.int8_macs:
            text += ", all in 8 bits" if use.int8_macs == use.macs else ""
            text += (
                f", {share(use.int8_macs / use.macs)} in 8 bits" if use.int8_macs < use.macs else ""
            )
        text += "</small>"
    if use.unknown:
        text += f" <small>{use.unknown} not counted: shapes unknown</small>"
    return text


def _macs(use: OperatorUse | None) -> int:
    return use.macs or 0 if use else 0


def _evidence(found: BundleReport) -> str:
    rows = []
    for variant in found.variants:
        known = variant.figure_evidence
        each = (
            known.agreement,
            known.metric,
            known.max_abs_error,
            known.latency_ms,
            known.placement,
        )
        rows.append((f"<b>{escape(variant.name)}</b>", *(_level(level) for level in each)))
    head = ("variant", "agreement", "metric", "largest error", "latency", "placement")
    seen = {level for v in found.variants for level in _levels(v)}
    meanings = facts((level, text) for level, text in _MEANING.items() if level in seen)
    return (
        "<h3>Evidence</h3><p>How each figure is known. Size is read off the file; memory is"
        f" estimated from weights and the largest set of live tensors.</p>{table(head, rows)}"
        f"{meanings}"
    )


def _levels(variant: VariantReport) -> Iterable[str]:
    known = variant.figure_evidence
    each = (known.agreement, known.metric, known.max_abs_error, known.latency_ms, known.placement)
    yield variant.evidence
    yield from (level for level in each if level is not None)


def _level(level: str | None) -> str:
    return absent() if level is None else f'<span class="level {level}">{level}</span>'
