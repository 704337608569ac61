"""Agree: how far apart two final answers to one picture are.

Near ties may fall either way without an answer being wrong, so what counts is not whether lists are
equal but by how much scores must have moved to make one list of the other. If no score moved by
more than t, then no class or box that only one of them lists stands more than t above what the
other one left off.

Golden answers are more thorough than served ones, so that one of few places says something:
rankings are deeper, and weaker boxes count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from edgekit.golden import AnyAnswer, Detections, Ranking, Scores
from edgekit.steps import Boxes, PostStep, TopK
from edgekit_runtime.pipeline.finish import PROBABILITIES, Answers
from edgekit_runtime.pipeline.suppress import ious

PARTNER_IOU = 0.5
"""Boxes of one class that overlap less are not one box."""

_PLACES = 10
_WEAK = 0.1
_SCORE_DIGITS, _BOX_DIGITS = 6, 3


class Gap(NamedTuple):
    """How far apart two answers are.

    Attributes:
        score: least movement of scores that explains the difference.
        iou: least overlap of a box with its counterpart; 1 without boxes.
        where: what differs most, in words.
    """

    score: float = 0.0
    iou: float = 1.0
    where: str = "nothing differs"


def thorough(steps: Sequence[PostStep]) -> tuple[PostStep, ...]:
    """The steps that golden answers are made with: ten places, and boxes from a score of .1."""
    return tuple(_thorough(step) for step in steps)


def answers_of(steps: Sequence[PostStep], found: Answers, sample: int) -> tuple[AnyAnswer, ...]:
    """What `finish` of these steps gave for one sample, as a bundle keeps it, rounded."""
    given: list[AnyAnswer] = []
    for step in steps:
        if isinstance(step, TopK):
            given.append(
                Ranking(
                    indices=tuple(found[f"{step.prefix}indices"][sample].tolist()),
                    scores=_rounded(found[f"{step.prefix}scores"][sample]),
                )
            )
        elif isinstance(step, Boxes):
            count = int(found[f"{step.prefix}box_counts"][sample])
            boxes = found[f"{step.prefix}boxes"][sample][:count].astype(np.float64)
            given.append(
                Detections(
                    boxes=tuple(map(tuple, boxes.round(_BOX_DIGITS).tolist())),
                    scores=_rounded(found[f"{step.prefix}box_scores"][sample][:count]),
                    classes=tuple(found[f"{step.prefix}box_classes"][sample][:count].tolist()),
                )
            )
    if PROBABILITIES in found:
        given.append(Scores(values=_rounded(found[PROBABILITIES][sample])))
    return tuple(given)


def gap(steps: Sequence[PostStep], got: Sequence[AnyAnswer], want: Sequence[AnyAnswer]) -> Gap:
    """How far apart golden answers to one picture are, over all steps.

    Args:
        steps: as they serve. A weak box says where scores are, but not where boxes are: an overlap
            counts from the score that is served.
    """
    if [type(answer) for answer in got] != [type(answer) for answer in want]:
        return Gap(float("inf"), 0.0, "the steps give answers of other kinds")
    listing = [step for step in steps if isinstance(step, TopK | Boxes)]
    worst = Gap()
    for position, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if isinstance(ours, Ranking) and isinstance(theirs, Ranking):
            found = _of_rankings(ours, theirs)
        elif isinstance(ours, Detections) and isinstance(theirs, Detections):
            step = listing[position]
            assert isinstance(step, Boxes)
            found = _of_detections(ours, theirs, step)
        else:
            assert isinstance(ours, Scores)
            assert isinstance(theirs, Scores)
            found = _of_scores(ours, theirs)
        worst = joined(worst, found)
    return worst


def joined(a: Gap, b: Gap) -> Gap:
    """The worse of two, in score and in overlap; in words the one whose scores differ more."""
    first = a if (a.score, 1 - a.iou) >= (b.score, 1 - b.iou) else b
    return Gap(max(a.score, b.score), min(a.iou, b.iou), first.where)


def _thorough(step: PostStep) -> PostStep:
    if isinstance(step, TopK):
        return replace(step, k=max(step.k, _PLACES))
    if isinstance(step, Boxes):
        return replace(step, score_threshold=min(step.score_threshold, _WEAK))
    return step


def _of_rankings(got: Ranking, want: Ranking) -> Gap:
    ours = dict(zip(got.indices, got.scores, strict=True))
    theirs = dict(zip(want.indices, want.scores, strict=True))
    gaps = [
        Gap(abs(score - theirs[label]), where=f"class {label} has {score:g}, not {theirs[label]:g}")
        if label in theirs
        else _missing(label, score, want.scores)
        for label, score in ours.items()
    ]
    gaps += [
        _missing(label, score, got.scores) for label, score in theirs.items() if label not in ours
    ]
    # Which class stands at a place may change where two are near; how high it is may not.
    gaps += [
        Gap(abs(a - b), where=f"place {place + 1} is class {got.indices[place]} with {a:g},"
            f" not {want.indices[place]} with {b:g}")
        for place, (a, b) in enumerate(zip(got.scores, want.scores, strict=False))
    ]  # fmt: skip
    return max(gaps, key=lambda one: one.score, default=Gap())


def _missing(label: int, score: float, others: Sequence[float]) -> Gap:
    last = others[-1] if others else score
    return Gap(max(score - last, 0.0), where=f"class {label} with {score:g} is in one list only")


def _of_detections(got: Detections, want: Detections, step: Boxes) -> Gap:
    worst = Gap()
    for one in (*_pairs(got, want, step), *_alone(got, want, step), *_alone(want, got, step)):
        worst = joined(worst, one)
    return worst


def _pairs(got: Detections, want: Detections, step: Boxes) -> Iterator[Gap]:
    for ours, theirs, iou in partners(got, want):
        a, b = got.scores[ours], want.scores[theirs]
        box = _box_text(want, theirs)
        sure = max(a, b) >= step.score_threshold
        yield Gap(
            abs(a - b), iou if sure else 1.0, f"{box} has score {a:g} and IoU {iou:.3f}, not {b:g}"
        )


def _alone(some: Detections, others: Detections, step: Boxes) -> Iterator[Gap]:
    """Boxes without a counterpart: each would have to fall below what the others left off."""
    limit = min(step.score_threshold, _WEAK)
    if len(others.scores) >= step.max_detections:
        limit = max(limit, others.scores[-1])
    paired = {ours for ours, _, _ in partners(some, others)}
    for position, score in enumerate(some.scores):
        if position not in paired:
            where = f"{_box_text(some, position)} with {score:g} has no counterpart"
            yield Gap(max(score - limit, 0.0), where=where)


def partners(got: Detections, want: Detections) -> Iterator[tuple[int, int, float]]:
    """Boxes that are one: of a class, largest overlap first, each once."""
    if not got.boxes or not want.boxes:
        return
    overlap = ious(np.array(got.boxes), np.array(want.boxes))
    overlap *= np.array(got.classes)[:, np.newaxis] == np.array(want.classes)
    for _ in range(min(overlap.shape)):
        ours, theirs = np.unravel_index(int(overlap.argmax()), overlap.shape)
        iou = float(overlap[ours, theirs])
        if iou < PARTNER_IOU:
            return
        yield int(ours), int(theirs), iou
        overlap[ours], overlap[:, theirs] = 0, 0


def _box_text(found: Detections, position: int) -> str:
    corners = ", ".join(f"{value:.0f}" for value in found.boxes[position])
    return f"box {corners} of class {found.classes[position]}"


def _of_scores(got: Scores, want: Scores) -> Gap:
    if len(got.values) != len(want.values):
        return Gap(float("inf"), where=f"{len(got.values)} scores, not {len(want.values)}")
    gaps = np.abs(np.array(got.values) - np.array(want.values))
    worst = int(gaps.argmax())
    where = f"class {worst} has {got.values[worst]:g}, not {want.values[worst]:g}"
    return Gap(float(gaps[worst]), where=where)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Six significant digits: what a float32 holds, without its noise in decimal."""
    return tuple(float(f"{value:.{_SCORE_DIGITS}g}") for value in values.tolist())
