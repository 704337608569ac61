"""Verdict: what the build decided, why, and the figures that a reader came for."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from edgekit_converters.report import BundleReport, VariantReport
from edgekit_converters.sections import float_parent, is_float
from edgekit_converters.sections.markup import card, cards, listed
from edgekit_converters.sections.numbers import (
    NOT_MEASURED,
    count,
    megabytes,
    metric_name,
    milliseconds,
    points,
    score,
    share,
    times,
    within,
)

_OUTCOMES = {
    "passed": "gate passed",
    "refused": "gate refused",
    "not_enough_data": "not enough data",
}


def verdict(found: BundleReport) -> str:
    """The head of the page."""
    best, gate = found.variants[0], found.gate
    digest = f'<code class="digest">{escape(found.digest)}</code>' if found.digest else ""
    return (
        f'<header><p class="over">edgekit build report</p><h1>{escape(found.name)}'
        f" <small>{escape(found.version)}</small></h1>"
        f"<p>for <b>{escape(found.profile)}</b>, {escape(_place(found))}</p>"
        f'<div class="verdict {gate.outcome}"><p><span class="badge">{_OUTCOMES[gate.outcome]}'
        f"</span> <b>{escape(_sentence(found, best))}</b></p>"
        f"{listed(_remarks(found), kind='why')}</div>{digest}</header>{cards(_cards(found, best))}"
    )


def _place(found: BundleReport) -> str:
    if any(variant.latency_ms is not None for variant in found.variants):
        return f"measured on {found.measured_on}"
    return f"run on {found.measured_on}, which is not the board"


def _sentence(found: BundleReport, best: VariantReport) -> str:
    """The outcome in one line."""
    if is_float(best):
        waiting = [v.name for v in found.variants if not (v.proven or is_float(v))]
        if waiting:
            return f"{best.name} is the default: {' and '.join(waiting)} could not be proven."
        return f"{best.name} ships: the model as it came."
    gains = []
    if best.speedup is not None:
        gains.append(f"{times(best.speedup)} faster than float")
    else:
        gains.append(f"{megabytes(best.size_bytes)}, speed not measured on this machine")
    if best.agreement is not None:
        gains.append(f"the float model's answer on {share(best.agreement)} of samples")
    elif best.metric is not None:
        gains.append(f"{metric_name(best.metric.name)} {score(best.metric.value)}")
    tail = "" if found.gate.outcome == "passed" else ", not proven"
    return f"{best.name} ships: {', '.join(gains)}{tail}."


def _remarks(found: BundleReport) -> Iterable[str]:
    yield from found.gate.reasons
    if found.truncated:
        yield "Truncated: the time limit ended the search, and more time may find a better scheme."
    for variant in found.variants:
        for text in variant.unproven:
            if not any(text in reason for reason in found.gate.reasons):
                yield f"{variant.name} is unproven: {text}."
        yield from (f"{variant.name}: {text}." for text in variant.warnings)
    for rejected in found.rejected:
        if rejected.scheme == "source":
            yield f"{rejected.engine}: {rejected.reason}."


def _cards(found: BundleReport, best: VariantReport) -> Iterable[str]:
    parent = float_parent(found, best)
    if best.speedup is None:
        if best.estimated_ms is None:
            yield card(NOT_MEASURED, "speed-up", "the board was not at hand", absent=True)
            yield card(NOT_MEASURED, "latency", f"the artefact was {best.evidence}", absent=True)
        else:
            detail = "not measured: by the tool's own model of the hardware"
            yield card(milliseconds(best.estimated_ms), "latency, estimated", detail)
    else:
        if not is_float(best):
            low, high = best.speedup_quartiles or (best.speedup, best.speedup)
            detail = f"middle half of blocks {low:.2f} to {high:.2f}"
            yield card(times(best.speedup), "faster than float", detail)
        if best.latency_ms is not None:
            detail = f"p99 {milliseconds(best.latency_ms.p99)}, one sample"
            yield card(milliseconds(best.latency_ms.p50), "latency, median", detail)
    if best.accelerator != "cpu" and best.placement.accelerator_macs is not None:
        title = f"of MACs on the {best.accelerator}"
        detail = f"not seen on the board: {best.figure_evidence.placement}"
        if best.figure_evidence.placement == "executed":
            detail = "as the engine itself says"
        yield card(share(best.placement.accelerator_macs), title, detail)
    if best.agreement is not None:
        detail = f"{within(best.agreement_ci95)}, {count(found.data.evaluation, 'sample')}"
        yield card(share(best.agreement), "the float model's answer", detail)
    if best.metric is not None and best.metric.name != "agreement":
        metric = best.metric
        detail = f"float {score(metric.float_value)}, drop {points(metric.drop)}"
        yield card(score(metric.value), metric_name(metric.name), detail)
    if best.metric is None:
        detail = "there are no evaluation samples: give --data"
        yield card(NOT_MEASURED, "accuracy", detail, absent=True)
    size = "the model as it came" if is_float(best) else "its engine has no float variant here"
    if parent is not None and parent is not best:
        ratio = parent.size_bytes / best.size_bytes
        size = f"float {megabytes(parent.size_bytes)}, {ratio:.1f}x smaller"
    yield card(megabytes(best.size_bytes), f"size of {best.name}", size)
    yield card(f"{best.memory_mb} MB", "memory", "estimated from weights and activations")
