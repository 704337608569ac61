"""Summary: from what was made to the report of a bundle, figure by figure with its evidence."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.manifest import canonical
from edgekit.profile import DeviceProfile, EngineSpec, Evidence
from edgekit.signing import SigningKey
from edgekit_converters import evidence, placement, report
from edgekit_converters.artefact import Made
from edgekit_converters.blocks import blocks_of
from edgekit_converters.gate import Gate
from edgekit_converters.measure import speedup_quartiles
from edgekit_converters.reach import out_of_reach
from edgekit_converters.report import BundleReport, Rejected, Tried, VariantReport
from edgekit_converters.study import studies
from edgekit_converters.targets import Found
from edgekit_converters.typed import Typed
from edgekit_converters.usage import operator_uses
from edgekit_converters.workshop import Workshop


@dataclass(frozen=True)
class Order:
    """What a bundle is called, who signs it and where it goes.

    Attributes:
        command: what was typed, for the report alone; empty where nothing was.
    """

    name: str
    version: str
    key: SigningKey
    out: Path
    command: Typed = ()


@dataclass(frozen=True)
class Findings:
    """All that a build for one profile found.

    Attributes:
        variants: what ships, by name, default first; empty where the gate refused.
        tried: every scheme that was made, and whether a time limit ended that.
        started_s: when the build began, on the monotonic clock.
    """

    profile: DeviceProfile
    order: Order
    gate: Gate
    variants: Mapping[str, Made]
    tried: tuple[Tried, ...]
    rejected: tuple[Rejected, ...]
    truncated: bool
    notes: tuple[str, ...]
    started_s: float


def summarise(workshop: Workshop, findings: Findings, *, digest: str | None) -> BundleReport:
    """The report of a bundle; without a digest nothing is written and its paths are None."""
    order = findings.order
    stem = f"{order.name}-{order.version}-{findings.profile.name}"
    parts = workshop.parts
    notes = [*workshop.notes, *parts.notes, *findings.notes]
    for name, made in findings.variants.items():
        floor = placement.floor_of(findings.profile, made.engine)
        own = [*placement.unknown(made.product.placement, floor, made.engine), *made.product.notes]
        own += [made.rerun.note] if made.rerun.note else []
        notes += [f"{name}: {note}" for note in own]
        if workshop.source.format == "onnx":
            normal = workshop.normal(made.engine)
            notes += [*normal.notes, *out_of_reach(normal.model)]
    return BundleReport(
        path=order.out / f"{stem}.edge" if digest else None,
        profile=findings.profile.name,
        name=order.name,
        version=order.version,
        digest=digest,
        variants=tuple(_variant(name, made) for name, made in findings.variants.items()),
        rejected=findings.rejected,
        gate=findings.gate,
        measured_on=report.machine(),
        report=order.out / f"{stem}.report.html" if digest else None,
        seconds=round(time.monotonic() - findings.started_s, 1),
        data=report.DataReport(
            origin=parts.origin,
            calibration=parts.calibration.count if parts.calibration else 0,
            selection=parts.selection.count if parts.selection else 0,
            golden=parts.golden.count,
            evaluation=parts.evaluation.count if parts.evaluation else 0,
            groups=workshop.data.groups if workshop.data else 0,
        ),
        tried=findings.tried,
        truncated=findings.truncated,
        notes=tuple(dict.fromkeys(notes)),
    )


def details(workshop: Workshop, findings: Findings, tools: dict[str, str]) -> report.Details:
    """The raw measurements behind a report, and what a reader needs to follow it."""
    return report.Details(
        variants=tuple(
            report.VariantDetail(
                name=name,
                evaluation=made.evaluation,
                timing=made.timing,
                providers=tuple(provider.name for provider in made.engine.providers),
                operators=operator_uses(made.graph, made.operators),
            )
            for name, made in findings.variants.items()
        ),
        machine=report.machine(),
        load_average=report.load_average(),
        tools=tools,
        studies=tuple(_studies(workshop, findings)),
        digests=_digests(workshop, findings, tools),
        command=findings.order.command,
    )


def _studies(workshop: Workshop, findings: Findings) -> Iterable[report.Study]:
    probed = {entry.engine for entry in findings.tried if entry.probe}
    # What was tried names its engine, and a board may have one of a name on two accelerators.
    first: dict[str, EngineSpec] = {e.name: e for e in reversed(findings.profile.engines)}
    for name in sorted(probed):
        made = {key: m for key, m in findings.variants.items() if m.engine.name == name}
        yield from studies(
            findings.tried,
            blocks_of(workshop.normal(first[name]).model),
            engine=name,
            chosen={key: m.scheme for key, m in made.items()},
        )


def _digests(workshop: Workshop, findings: Findings, tools: dict[str, str]) -> dict[str, str]:
    """sha256 of what went in, by what it is."""
    data = {"data": workshop.data.sha256} if workshop.data else {}
    return {
        "source": workshop.source.sha256,
        **data,
        "profile": hashlib.sha256(canonical(findings.profile)).hexdigest(),
        "recipe": hashlib.sha256(canonical(workshop.recipe)).hexdigest(),
        "tool-lock": evidence.lock_sha256(evidence.lock(tools)),
    }


def _variant(name: str, made: Made) -> VariantReport:
    timing, found = made.timing, made.evaluation
    # What a stand-in computed is simulated at best, also where the artefact was only linted.
    arithmetic: Evidence = "executed" if made.evidence == "executed" else "simulated"
    placed = _placed(made)
    quartiles = None
    if timing is not None and made.float_timing is not None:
        quartiles = speedup_quartiles(made.float_timing, timing)
    return VariantReport(
        name=name,
        engine=made.engine.name,
        accelerator=made.engine.accelerator,
        precision=made.precision,
        size_bytes=made.size_bytes,
        latency_ms=report.Latency(p50=timing.p50_ms, p99=timing.p99_ms) if timing else None,
        speedup=made.speedup,
        speedup_quartiles=quartiles,
        agreement=found.agreement if found else None,
        agreement_ci95=found.agreement_ci95 if found else None,
        metric=found.metric if found else None,
        max_abs_error=made.largest_error,
        placement=report.PlacementReport(
            accelerator_macs=placed.accelerator_macs, fallback_ops=placed.fallback_ops
        ),
        evidence=made.evidence,
        figure_evidence=report.FigureEvidence(
            agreement=arithmetic if found and found.agreement is not None else None,
            metric=arithmetic if found else None,
            max_abs_error=arithmetic,
            latency_ms="executed" if timing else None,
            placement=None if placed.accelerator_macs is None else placed.evidence,
        ),
        proven=not made.verdict.unproven and found is not None,
        unproven=made.verdict.unproven,
        scheme=made.scheme.name,
        steps=made.scheme.steps,
        memory_mb=made.needs.memory_mb,
        warnings=made.verdict.warnings,
        estimated_ms=made.product.estimated_ms,
        rerun_in=made.rerun.version,
    )


def _placed(made: Made) -> Found:
    """Where an artefact runs; an engine on the CPU leaves nothing for another device to run."""
    if made.engine.accelerator == "cpu":
        return Found(accelerator_macs=1.0, fallback_ops=(), evidence=made.evidence)
    nowhere = Found(accelerator_macs=None, fallback_ops=None, evidence=made.evidence)
    return made.product.placement or nowhere
