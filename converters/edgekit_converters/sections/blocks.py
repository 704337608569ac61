"""Blocks: what each piece of the model does to the answers, and which pieces stay in float."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite

from edgekit_converters.passes import KEEP
from edgekit_converters.plots import mirrored
from edgekit_converters.report import BlockEffect, BundleReport, Details, Study, VariantReport
from edgekit_converters.sections import Section
from edgekit_converters.sections.markup import (
    clipped,
    code,
    explained,
    fold,
    listed,
    paragraph,
    table,
)
from edgekit_converters.sections.numbers import NOT_MEASURED, count, share

_NODES = 300


def blocks(found: BundleReport, details: Details) -> Section | None:
    """One drawing for each scheme that was probed, and what the variants keep in float."""
    keeping = [(v, nodes) for v in found.variants if (nodes := _kept(v))]
    if not details.studies and not keeping:
        return None
    drawings = "".join(_study(study) for study in details.studies)
    kept = "".join(_keeping(variant, nodes, details) for variant, nodes in keeping)
    lead = "The model in consecutive pieces, and what each of them costs in accuracy."
    return Section("blocks", "Which blocks hurt", drawings + kept, lead if drawings else "")


def _study(study: Study) -> str:
    effects = [_effect(study, block) for block in study.blocks]
    columns = [
        (
            str(number),
            0.0 if effect is None else effect,
            block.share,
            "float" if block.kept_by else "bar",
            _told(number, block, effect, alone=study.alone),
        )
        for number, (block, effect) in enumerate(zip(study.blocks, effects, strict=True), start=1)
    ]
    if study.alone:
        up = "relative error"
        caption = "Up: relative error of the answers with this block alone quantised."
    else:
        up = "error removed"
        caption = (
            "Up: share of the error's power that goes away with this block in float; the whole"
            f" scheme has a relative error of {_root(study.noise)}."
        )
    caption += " Down: share of the model's multiply-accumulates."
    drawing = mirrored(columns, names=(up, "MACs"), title="What each block does")
    head = ("block", "nodes", "first … last", "MACs", up, "in float in")
    rows = [
        (
            str(number),
            str(block.nodes),
            f"{code(clipped(block.first, 60))} … {code(clipped(block.last, 60))}",
            share(block.share),
            escape(NOT_MEASURED if effect is None else share(effect)),
            escape(", ".join(block.kept_by)),
        )
        for number, (block, effect) in enumerate(zip(study.blocks, effects, strict=True), start=1)
    ]
    details = fold("Blocks as a table", table(head, rows, numbers=(0, 1, 3, 4)))
    keys = [("ship", "in few bits in every variant"), ("float", "in float in a variant that ships")]
    title = f"<h4>{escape(f'{study.scheme} on {study.engine}')}</h4>"
    kept = any(block.kept_by for block in study.blocks)
    return title + explained(drawing, keys if kept else [], caption) + details


def _effect(study: Study, block: BlockEffect) -> float | None:
    """How much a block does, as a share; negative where float makes it worse. None where that is
    not known, or answers were not numbers."""
    if block.noise is None or not isfinite(block.noise):
        return None
    if study.alone:
        return float(block.noise**0.5)
    if not study.noise or not isfinite(study.noise):
        return None
    return 1.0 - block.noise / study.noise


def _told(number: int, block: BlockEffect, effect: float | None, *, alone: bool) -> str:
    what = "error" if alone else "error removed"
    text = f"block {number}: {what} {NOT_MEASURED if effect is None else share(effect)}"
    text += f", {share(block.share)} of MACs, {count(block.nodes, 'node')}"
    return text + (f", in float in {', '.join(block.kept_by)}" if block.kept_by else "")


def _keeping(variant: VariantReport, nodes: Sequence[str], details: Details) -> str:
    numbers = [
        str(number)
        for study in details.studies[:1]
        for number, block in enumerate(study.blocks, start=1)
        if variant.name in block.kept_by
    ]
    text = f"{variant.name} leaves {count(len(nodes), 'node')} in float"
    text += f": blocks {', '.join(numbers)}." if numbers else "."
    more = [f"and {len(nodes) - _NODES} more"] if len(nodes) > _NODES else []
    names = listed([*nodes[:_NODES], *more], kind="names")
    return paragraph(text) + fold(f"Nodes in float in {variant.name}", names)


def _kept(variant: VariantReport) -> tuple[str, ...]:
    option = variant.steps[-1].options.get(KEEP, ()) if variant.steps else ()
    return option if isinstance(option, tuple) else ()


def _root(noise: float | None) -> str:
    return NOT_MEASURED if noise is None else share(noise**0.5)
