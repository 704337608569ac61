"""Worst: the samples on which a variant is furthest from the float model, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from edgekit_converters.data import Samples
from edgekit_converters.evaluate import Evaluation
from edgekit_converters.metrics.changes import Worst
from edgekit_converters.report import BundleReport, Details
from edgekit_converters.sections import Section, is_float
from edgekit_converters.sections.markup import clipped, facts, fold
from edgekit_converters.sections.names import class_name
from edgekit_converters.sections.numbers import share
from edgekit_converters.thumbnails import sample_view
from edgekit_converters.workshop import Workshop

_NAME = 60


def worst(found: BundleReport, details: Details, workshop: Workshop) -> Section | None:
    """Tiles for each variant that is not float; None where none was evaluated or all agree."""
    samples = workshop.parts.evaluation
    if samples is None:
        return None
    by_name = {detail.name: detail.evaluation for detail in details.variants}
    shown = [
        (v.name, _tiles(evaluation, samples, workshop))
        for v in found.variants
        if not is_float(v) and (evaluation := by_name[v.name]) is not None and _differs(evaluation)
    ]
    if not shown:
        return None
    first, *rest = shown
    body = f"<h3>{escape(first[0])}</h3>{first[1]}" + "".join(fold(*each) for each in rest)
    answered = any(e and e.flips is not None for e in by_name.values())
    lead = "Changed answers first, then the largest errors." if answered else "The largest errors."
    return Section("worst", "Furthest from the float model", body, lead)


def _differs(evaluation: Evaluation) -> bool:
    return any(each.error > 0 for each in evaluation.worst)


def _tiles(evaluation: Evaluation, samples: Samples, workshop: Workshop) -> str:
    tiles = []
    for each in evaluation.worst:
        view = sample_view(samples, each.position)
        said = facts(_said(each, evaluation, workshop))
        changed = " changed" if each.answer != each.float_answer else ""
        tiles.append(f'<figure class="tile{changed}">{view}{said}</figure>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _said(each: Worst, evaluation: Evaluation, workshop: Workshop) -> Iterable[tuple[str, str]]:
    before, after = _confidences(each, evaluation)
    if each.float_answer is not None and each.answer is not None:
        own = _name(each.float_answer, workshop)
        yield "float", f"{own}{before}"
        if each.answer == each.float_answer:
            yield "artefact", f"the same{after}"
        else:
            given = f"<br><small>float's answer{after}</small>" if after else ""
            yield "artefact", f"<em>{_name(each.answer, workshop)}</em>{given}"
    if each.label is not None:
        mark = "" if each.answer is None else " ✓" if each.answer == each.label else " ✗"
        yield "label", f"{_name(each.label, workshop)}{mark}"
    yield "error", f"{each.error:.3g} <small>sample {each.position}</small>"


def _confidences(each: Worst, evaluation: Evaluation) -> tuple[str, str]:
    """What both models give the float model's answer, where that is a probability."""
    if each.position >= len(evaluation.confidences):
        return "", ""
    before, after = evaluation.confidences[each.position]
    return f" {share(round(before, 3))}", f" {share(round(after, 3))}"


def _name(label: int, workshop: Workshop) -> str:
    return escape(clipped(class_name(label, workshop), _NAME))
