"""Changes: which answers are not what they were, class by class and sample by sample.

Both models answer the same samples, so all that is counted here is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_converters.metrics.classification import Classes
from edgekit_converters.metrics.scoring import Case, ClassTally, rows_of
from edgekit_converters.metrics.seen import SeenBoxes, SeenMask, seen
from edgekit_converters.metrics.views import is_class_labels
from edgekit_converters.statistics import (
    Extent,
    Floats,
    Interval,
    Resampling,
    Tally,
    interval,
    mcnemar,
)

MIN_CLASS_GROUPS = 10
"""Groups of a class below which an interval of its own says nothing."""


_CLASS_DRAWS = 500
_WORST = 8


class Flips(Strict, frozen=True, kw_only=True):
    """How many answers changed, of those that are classes.

    Attributes:
        changed: samples whose answer is not the source's.
        rate: their share, with its 95 % interval.
        lost: right by the source and wrong by the artefact; None without labels.
        won: wrong by the source and right by the artefact; None without labels.
        mcnemar_p: exact two-sided p of lost against won, where samples are independent; None
            without labels.
    """

    changed: int
    rate: float
    rate_ci95: Interval | None
    lost: int | None = None
    won: int | None = None
    mcnemar_p: float | None = None


class ClassChange(Strict, frozen=True, kw_only=True):
    """One class: how many samples and groups show it, and each model's figure for it.

    Attributes:
        float_right, right: share of samples that each model gets right; for masks the IoU, for
            boxes the average precision of the class.
        drop_ci95: 95 % interval of the difference; None where fewer than `MIN_CLASS_GROUPS` groups
            show the class.
    """

    label: int
    samples: int
    groups: int
    float_right: float
    right: float
    drop_ci95: Interval | None

    @property
    def drop(self) -> float:
        return self.float_right - self.right


class Worst(Strict, frozen=True, kw_only=True):
    """A sample on which the artefact is furthest from the source; `position` in evaluation.

    Attributes:
        boxes, mask: what both models see there, of a detector or a segmenter.
    """

    position: int
    error: float
    float_answer: int | None
    answer: int | None
    label: int | None
    boxes: SeenBoxes | None = None
    mask: SeenMask | None = None


def flips_of(
    found: tuple[Classes, Classes], labels: NDArray[Any] | None, rate_ci95: Interval | None
) -> Flips:
    before, after = found
    changed = int((before != after).sum())
    rate = changed / len(before)
    if labels is None or not is_class_labels(labels):
        return Flips(changed=changed, rate=rate, rate_ci95=rate_ci95)
    lost = int(((before == labels) & (after != labels)).sum())
    won = int(((before != labels) & (after == labels)).sum())
    return Flips(
        changed=changed,
        rate=rate,
        rate_ci95=rate_ci95,
        lost=lost,
        won=won,
        mcnemar_p=mcnemar(lost, won),
    )


def class_changes(
    tallies: Mapping[int, ClassTally], groups: NDArray[np.int64], resampling: Resampling
) -> tuple[ClassChange, ...]:
    extents = {
        label: Extent(len(tally.which), len(np.unique(groups[tally.which])))
        for label, tally in tallies.items()
    }
    shown = [label for label, extent in extents.items() if extent.groups >= MIN_CLASS_GROUPS]
    pairs = [tally for label in shown for tally in (tallies[label].source, tallies[label].artefact)]
    drawn = resampling.draw(pairs, most=_CLASS_DRAWS)
    drops = {
        label: interval(before - after, extents[label], low=-1.0, high=1.0)
        for label, before, after in zip(shown, drawn[::2], drawn[1::2], strict=True)
    }
    changes = []
    for label, tally in sorted(tallies.items()):
        own, value = values_of([tally.source, tally.artefact], len(groups))
        changes.append(
            ClassChange(
                label=label,
                samples=extents[label].samples,
                groups=extents[label].groups,
                float_right=own,
                right=value,
                drop_ci95=drops.get(label),
            )
        )
    return tuple(changes)


def worst_of(
    error: Floats, case: Case, found: tuple[Classes, Classes] | None, unlike: Floats | None
) -> tuple[Worst, ...]:
    """The samples whose answers changed most, by what the answer is for before by its numbers."""
    # A changed answer is worse than any difference in scores.
    changed = np.zeros(len(error), bool) if found is None else found[0] != found[1]
    further = np.zeros(len(error)) if unlike is None else unlike
    order = np.lexsort((-error, -further, ~changed))[:_WORST].tolist()
    known = case.labels if case.labels is not None and is_class_labels(case.labels) else None
    return tuple(
        Worst(
            position=i,
            error=float(error[i]),
            float_answer=None if found is None else int(found[0][i]),
            answer=None if found is None else int(found[1][i]),
            label=None if known is None else int(known[i]),
            boxes=sight if isinstance(sight, SeenBoxes) else None,
            mask=sight if isinstance(sight, SeenMask) else None,
        )
        for i, sight in zip(order, seen(case, order), strict=True)
    )


def confidences_of(case: Case) -> tuple[tuple[float, float], ...]:
    if case.view.kind != "classes":
        return ()
    scores, others = case.source[case.view.output], case.artefact[case.view.output]
    rows, best = np.arange(len(scores)), scores.argmax(axis=1)
    before, after = _probabilities(scores)[rows, best], _probabilities(others)[rows, best]
    return tuple(zip(before.round(4).tolist(), after.round(4).tolist(), strict=True))


def values_of(tallies: Sequence[Tally], samples: int) -> list[float]:
    """Each figure where every sample counts once."""
    once = np.ones((1, samples))
    return [float(tally.value(once)[0]) for tally in tallies]


def _probabilities(scores: NDArray[Any]) -> Floats:
    values = rows_of(scores)
    if values.min(initial=0) >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
