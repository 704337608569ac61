"""Worst: the samples on which a variant is furthest from the float model, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape

from edgekit_converters.data import Samples
from edgekit_converters.evaluate import Evaluation
from edgekit_converters.metrics.changes import Worst
from edgekit_converters.metrics.detection import SURE
from edgekit_converters.metrics.seen import SeenBox, SeenMask
from edgekit_converters.overlays import legend, over
from edgekit_converters.report import BundleReport, Details
from edgekit_converters.sections import Section, is_float
from edgekit_converters.sections.markup import clipped, facts, fold
from edgekit_converters.sections.names import class_name
from edgekit_converters.sections.numbers import count, share
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
    lead, colours = _told([evaluation for evaluation in by_name.values() if evaluation])
    body = f"{colours}<h3>{escape(first[0])}</h3>{first[1]}"
    body += "".join(fold(*each) for each in rest)
    return Section("worst", "Furthest from the float model", body, lead)


def _told(evaluations: Sequence[Evaluation]) -> tuple[str, str]:
    """In which order samples come, and what the colours of drawings over them mean."""
    each = [worst for evaluation in evaluations for worst in evaluation.worst]
    sights = [sight for worst in each if (sight := worst.boxes or worst.mask) is not None]
    if not sights:
        answered = any(evaluation.flips is not None for evaluation in evaluations)
        return (
            "Changed answers first, then the largest errors."
            if answered
            else "The largest errors.",
            "",
        )
    if isinstance(sights[0], SeenMask):
        return "Masks that changed most come first.", legend(sights[0])
    return (
        f"Pictures whose boxes agree least come first. Boxes count from a score of {SURE:g}; a"
        " partner may have half of it.",
        legend(sights[0]),
    )


def _differs(evaluation: Evaluation) -> bool:
    return any(each.error > 0 for each in evaluation.worst)


def _tiles(evaluation: Evaluation, samples: Samples, workshop: Workshop) -> str:
    tiles = []
    for each in evaluation.worst:
        view = sample_view(samples, each.position, over=_over(each, workshop))
        said = facts(_said(each, evaluation, workshop))
        changed = " changed" if _is_changed(each) else ""
        tiles.append(f'<figure class="tile{changed}">{view}{said}</figure>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _over(each: Worst, workshop: Workshop) -> Callable[[int, int], str] | None:
    """What draws both models' sight upon a picture of some height and width."""
    sight = each.boxes or each.mask
    if sight is None:
        return None
    return partial(over, sight, name=lambda label: class_name(label, workshop))


def _is_changed(each: Worst) -> bool:
    if each.boxes is not None:
        return any(box.alone for box in (*each.boxes.source, *each.boxes.artefact))
    return each.answer != each.float_answer


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
    if each.boxes is not None:
        yield "float", _counted(each.boxes.source)
        yield "artefact", _counted(each.boxes.artefact)
    if each.mask is not None:
        yield "changed", f"{share(each.mask.changed)} <small>of the pixels</small>"
    if each.label is not None:
        mark = "" if each.answer is None else " ✓" if each.answer == each.label else " ✗"
        yield "label", f"{_name(each.label, workshop)}{mark}"
    yield "error", f"{each.error:.3g} <small>sample {each.position}</small>"


def _counted(boxes: Sequence[SeenBox]) -> str:
    """How many boxes one model has, and how many of them the other has not."""
    alone = sum(box.alone for box in boxes)
    told = count(len(boxes), "box", "boxes")
    return f"{told}, <em>{alone} alone</em>" if alone else told


def _confidences(each: Worst, evaluation: Evaluation) -> tuple[str, str]:
    """What both models give the float model's answer, where that is a probability."""
    if each.position >= len(evaluation.confidences):
        return "", ""
    before, after = evaluation.confidences[each.position]
    return f" {share(round(before, 3))}", f" {share(round(after, 3))}"


def _name(label: int, workshop: Workshop) -> str:
    return escape(clipped(class_name(label, workshop), _NAME))
