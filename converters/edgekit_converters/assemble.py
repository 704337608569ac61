"""Assemble: from what ships to a signed bundle and the report beside it, both or neither."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from edgekit import bundle, manifest, storage, tensors
from edgekit.manifest import Golden, Limits, Manifest, Model, Pipeline, Variant
from edgekit.recipe import Budget
from edgekit_converters import (
    drift_reference,
    evidence,
    golden,
    golden_pictures,
    page,
    placement,
    report,
    train,
)
from edgekit_converters.artefact import Made
from edgekit_converters.evaluate import scale_of
from edgekit_converters.evidence import bill, statements
from edgekit_converters.evidence.outcomes import RESULTS, outcomes
from edgekit_converters.report import BundleReport
from edgekit_converters.summary import Findings, details, summarise
from edgekit_converters.targets import target_for
from edgekit_converters.toolchains.pins import chains_for, versions
from edgekit_converters.workshop import Workshop

Entries = dict[str, bytes | Path]


def assemble(workshop: Workshop, findings: Findings) -> BundleReport:
    """Write the bundle and its report, unless the gate refused.

    Raises:
        StorageError: one of the two could not be written; neither is left.
    """
    if not findings.variants:
        return summarise(workshop, findings, digest=None)
    files, artifacts = _artifacts(findings.variants)
    content = _manifest(workshop, findings, artifacts)
    entries = {**files, **_golden(workshop, findings), **train.entries(workshop)}
    answered = {name: made.answered for name, made in findings.variants.items()}
    entries |= drift_reference.entries(workshop.parts.evaluation, answered)
    entries |= _evidence(workshop, content, files)
    described = {name: bundle.describe(entry) for name, entry in entries.items()}
    raw = manifest.encode(manifest.complete(content, described))
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    found = summarise(workshop, findings, digest=digest)
    _write(workshop, findings, found, content, entries)
    return found


def _write(
    workshop: Workshop,
    findings: Findings,
    found: BundleReport,
    content: Manifest,
    entries: Entries,
) -> None:
    assert found.path is not None
    assert found.report is not None
    raw = details(workshop, findings, content.tools)
    html = page.render(found, raw, workshop=workshop)
    storage.write(found.report, html)
    try:
        bundle.write(
            found.path,
            content,
            entries=entries,
            reports={
                report.REPORT_JSON: report.encode(found, tools=content.tools),
                report.REPORT_HTML: html,
                report.MEASUREMENTS: report.encode_details(raw),
                evidence.TEST_RESULT: _test_result(workshop, findings, content, entries),
            },
            key=findings.order.key,
        )
    except BaseException:
        found.report.unlink(missing_ok=True)
        raise


def _artifacts(variants: Mapping[str, Made]) -> tuple[Entries, dict[str, str]]:
    """Entries of the artefacts, and each variant's own; equal files are one entry."""
    entries: Entries = {}
    by_digest: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, made in variants.items():
        digest = bundle.describe(made.path).sha256
        if digest not in by_digest:
            by_digest[digest] = f"artifacts/{name}{made.path.suffix}"
            entries[by_digest[digest]] = made.path
        names[name] = by_digest[digest]
    return entries, names


def _golden(workshop: Workshop, findings: Findings) -> Entries:
    inputs = workshop.parts.golden.in_memory()
    entries: Entries = dict(golden.entries(inputs, workshop.reference("golden")))
    executed = {n: made for n, made in findings.variants.items() if made.evidence == "executed"}
    for name, made in executed.items():
        entries[golden.entry_of(name)] = tensors.encode(made.golden)
    return entries | golden_pictures.entries(
        workshop.raws,
        inputs=workshop.inputs,
        pre=workshop.recipe.preprocess,
        post=workshop.recipe.postprocess,
        variants={
            name: golden_pictures.Run(made.golden, made.slack, made.rounding is not None)
            for name, made in executed.items()
        },
    )


def _evidence(workshop: Workshop, content: Manifest, files: Entries) -> Entries:
    described = {name: bundle.describe(entry) for name, entry in files.items()}
    data = workshop.data.sha256 if workshop.data else None
    lock = evidence.lock(content.tools)
    return {
        evidence.SBOM: bill.sbom(
            content, described, lock=lock, given=workshop.recipe.licences, data=data
        ),
        evidence.PROVENANCE: statements.provenance(
            content,
            described,
            recipe=workshop.recipe,
            shapes=workshop.shapes,
            data=data,
            base=workshop.grids.digest if workshop.grids else None,
            lock=lock,
        ),
    }


def _test_result(
    workshop: Workshop, findings: Findings, content: Manifest, entries: Entries
) -> bytes:
    """What the gate found of what ships; it rests on measurements, so it lies with the reports."""
    files = {variant.artifact: entries[variant.artifact] for variant in content.variants}
    return statements.test_result(
        content,
        {name: bundle.describe(entry) for name, entry in files.items()},
        recipe=workshop.recipe,
        result=RESULTS[findings.gate.outcome],
        tests=outcomes(findings.variants, workshop.recipe.budget),
    )


def _manifest(workshop: Workshop, findings: Findings, artifacts: Mapping[str, str]) -> Manifest:
    scale = scale_of(workshop.reference("golden"))
    return Manifest(
        name=findings.order.name,
        version=findings.order.version,
        profile=findings.profile,
        model=Model(
            source_sha256=workshop.source.sha256, inputs=workshop.inputs, outputs=workshop.outputs
        ),
        pipeline=Pipeline(pre=workshop.recipe.preprocess, post=workshop.recipe.postprocess),
        limits=limits_of(workshop.recipe.budget),
        variants=tuple(
            Variant(
                name=name,
                artifact=artifacts[name],
                engine=made.engine.name,
                accelerator=made.engine.accelerator,
                precision=made.precision,
                options=made.options,
                needs=made.needs,
                placement=placement.contract(
                    made.product.placement, placement.floor_of(findings.profile, made.engine)
                ),
                golden=_tolerances(name, made, scale=scale),
            )
            for name, made in findings.variants.items()
        ),
        tools=_tools(workshop, findings),
        not_reproducible=tuple(sorted({artifacts[name] for name in _varying(findings)})),
    )


def limits_of(budget: Budget) -> Limits | msgspec.UnsetType:
    """What the board holds the variants to; nothing where the recipe sets no limit."""
    found = Limits(max_latency_ms=budget.max_latency_ms, max_memory_mb=budget.max_memory_mb)
    return msgspec.UNSET if found == Limits() else found


def _tools(workshop: Workshop, findings: Findings) -> dict[str, str]:
    """Versions of what had a hand in what ships, by distribution name."""
    targets = {target_for(made.engine) for made in findings.variants.values()}
    form = workshop.source.format
    chains = sorted(
        {name for target in targets if target for name in chains_for(target.toolchains, form)}
    )
    return {**versions(chains), **workshop.tools} if chains else workshop.tools


def _varying(findings: Findings) -> Iterator[str]:
    """Variants whose tools write another file each time."""
    for name, made in findings.variants.items():
        target = target_for(made.engine)
        if target is not None and not target.reproducible:
            yield name


def _tolerances(name: str, made: Made, *, scale: float) -> Golden:
    executed = made.evidence == "executed"
    return golden.tolerances(
        outputs=golden.entry_of(name) if executed else None,
        scale=scale,
        largest_error=made.largest_error,
        rounding=made.rounding if executed else None,
    )
