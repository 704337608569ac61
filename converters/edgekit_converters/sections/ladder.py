"""Ladder: the variants that ship, side by side, with the distributions behind their figures."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from edgekit_converters import plots
from edgekit_converters.axes import around
from edgekit_converters.report import BundleReport, Details, VariantReport
from edgekit_converters.sections import Section, is_float, style_of
from edgekit_converters.sections.markup import figure, known, pair, table
from edgekit_converters.sections.numbers import (
    NOT_MEASURED,
    megabytes,
    metric_name,
    milliseconds,
    points,
    score,
    share,
    times,
)
from edgekit_converters.workshop import Workshop

_HEAD = (
    "variant",
    "precision",
    "p50 / p99",
    "speed-up",
    "agreement",
    "metric",
    "drop",
    "largest error",
    "size",
    "memory, est.",
)


def ladder(found: BundleReport, details: Details, workshop: Workshop) -> Section:
    """A table of the variants, and how their figures spread."""
    rows = table(_HEAD, [_row(v) for v in found.variants], numbers=range(2, 10), optional=(4,))
    drawings = [
        *_latencies(found, details),
        *_agreements(found, workshop),
        *_metrics(found),
        *_sizes(found),
    ]
    lead = (
        "The first is the default. A scheduler may move along them between accurate and fast;"
        " what is unproven stands last and is never chosen by itself."
    )
    return Section("variants", "Variants", rows + pair(drawings), lead)


def _row(variant: VariantReport) -> tuple[str, ...]:
    metric = variant.metric
    name = f"<b>{escape(variant.name)}</b>"
    if not (variant.proven or is_float(variant)):
        name += ' <span class="tag open">unproven</span>'
    where = f"{variant.engine}, {variant.accelerator}"
    return (
        f"{name}<br><small>{escape(where)}</small>",
        escape(variant.precision),
        _latency(variant),
        known(times(variant.speedup)),
        known(share(variant.agreement)),
        known(f"{metric_name(metric.name)} {score(metric.value)}" if metric else NOT_MEASURED),
        known(points(metric.drop if metric else None)),
        known(NOT_MEASURED if variant.max_abs_error is None else f"{variant.max_abs_error:.3g}"),
        megabytes(variant.size_bytes),
        f"{variant.memory_mb} MB",
    )


def _latency(variant: VariantReport) -> str:
    latency = variant.latency_ms
    if latency is not None:
        return known(f"{latency.p50:.2f} / {milliseconds(latency.p99)}")
    if variant.estimated_ms is None:
        return known(NOT_MEASURED)
    told = escape(milliseconds(variant.estimated_ms))
    return f"{told}<br><small>by the tool's own estimate</small>"


def _latencies(found: BundleReport, details: Details) -> Iterable[str]:
    styles = {variant.name: style_of(variant) for variant in found.variants}
    rows = [
        (
            f"{detail.name}, median {milliseconds(detail.timing.p50_ms)}",
            [ms for block in detail.timing.blocks_ms for ms in block],
            styles[detail.name],
        )
        for detail in details.variants
        if detail.timing is not None
    ]
    if rows:
        busy = ", ".join(f"{value:.1f}" for value in details.load_average)
        caption = (
            "Every run of one sample; artefacts took turns in short blocks, so that a busy moment"
            f" of the machine hits all of them. Load average {busy}."
        )
        drawing = plots.strips(rows, label="milliseconds", title="Latency of each run")
        yield figure(drawing, caption, title="Latency")


def _agreements(found: BundleReport, workshop: Workshop) -> Iterable[str]:
    rows = [
        (v.name, v.agreement, v.agreement_ci95, style_of(v))
        for v in found.variants
        if v.agreement is not None
    ]
    if rows:
        limit = workshop.recipe.budget.min_agreement
        ends = [x for _, value, ci95, _ in rows for x in (value, *(ci95 or ()))]
        axis = around("share of samples", [*ends, limit], high=1.0, unit="share")
        drawing = plots.intervals(rows, x=axis, title="Agreement with the float model", limit=limit)
        caption = (
            f"Samples with the float model's answer, {found.data.evaluation} of them, with 95 %"
            " intervals; the dashed line is the budget."
        )
        yield figure(drawing, caption, title="Agreement")


def _metrics(found: BundleReport) -> Iterable[str]:
    rows = [
        (v.name, v.metric.value, v.metric.ci95, style_of(v)) for v in found.variants if v.metric
    ]
    names = {v.metric.name for v in found.variants if v.metric}
    if rows and names != {"agreement"}:
        name = metric_name(names.pop())
        ends = [x for _, value, ci95, _ in rows for x in (value, *(ci95 or ()))]
        axis = around(name, ends, high=max(1.0, *ends))
        drawing = plots.intervals(rows, x=axis, title=name)
        references = {v.metric.reference for v in found.variants if v.metric}
        against = {
            "labels": "against the labels",
            "float": "against the float model, as there are no labels",
            "function": "by the recipe's own function",
        }[references.pop()]
        caption = f"{name}, {against}, with 95 % intervals."
        yield figure(drawing, caption, title=name[:1].upper() + name[1:])


def _sizes(found: BundleReport) -> Iterable[str]:
    if len(found.variants) < 2:
        return
    rows = [
        (v.name, [(v.size_bytes / 1e6, style_of(v), megabytes(v.size_bytes))])
        for v in found.variants
    ]
    needs = [
        (v.name, [(float(v.memory_mb), style_of(v), f"{v.memory_mb} MB")]) for v in found.variants
    ]
    yield figure(
        plots.bars(rows, title="Size of the artefact")
        + "<h4>Memory, estimated</h4>"
        + plots.bars(needs, title="Memory"),
        title="Size of the file",
    )
