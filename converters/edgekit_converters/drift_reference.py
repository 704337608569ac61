"""Drift reference: the `drift.json` of a bundle, made of the samples that nothing was chosen by.

Inputs are looked at as they go into the model, outputs as each variant gave them when it was
proven, with the same views that a board looks with. The same samples and answers give the same
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.drift import reference
from edgekit.drift.judge import MIN_CLUSTERS
from edgekit.drift.reference import MAX_FEATURES, Part, Reference, part_of
from edgekit.drift.views import Floats, View, view_of
from edgekit_converters.data import Samples
from edgekit_converters.evaluate import class_scores
from edgekit_converters.metrics.scoring import Outputs
from edgekit_runtime.engines.batches import SampleArrays

MAX_INPUT_FEATURES = 36
MAX_OUTPUT_FEATURES = 12
# How far sums of probabilities that were rounded to 8 bits may be from 1.
_SUM_TOLERANCE = 0.05


def entries(evaluation: Samples | None, variants: Mapping[str, Part | None]) -> dict[str, bytes]:
    """`drift.json`, where there are samples of enough sources to say how much they vary.

    Args:
        evaluation: the samples that nothing was chosen by.
        variants: what `outputs_of` found of each variant; those that find no room any more are
            left out, the last ones first.
    """
    if evaluation is None:
        return {}
    inputs = part(evaluation.arrays, evaluation.groups, most=MAX_INPUT_FEATURES)
    if inputs is None:
        return {}
    room = MAX_FEATURES - len(inputs.features)
    kept = {}
    for name, outputs in variants.items():
        if outputs is not None and len(outputs.features) <= room:
            kept[name] = outputs
            room -= len(outputs.features)
    return {reference.ENTRY: reference.encode(Reference(inputs=inputs, variants=kept))}


def outputs_of(answers: Outputs, groups: NDArray[np.int64]) -> Part | None:
    """What a variant answered.

    Args:
        answers: by output name, axis 0 counting samples.
        groups: of the samples.
    """
    return part(answers, groups, most=MAX_OUTPUT_FEATURES, scores=class_scores(answers))


def part(
    arrays: SampleArrays, groups: NDArray[np.int64], *, most: int, scores: str | None = None
) -> Part | None:
    """What tensors were; None where they hold no numbers, or come from too few sources.

    Args:
        arrays: by name, axis 0 counting samples.
        groups: of the samples.
        most: features of all views together.
        scores: the tensor that holds a classifier's scores.
    """
    if len(np.unique(groups)) < MIN_CLUSTERS:
        return None
    views = _views(arrays, most=most, scores=scores)
    if not views:
        return None
    return part_of(views, _numbers(views, arrays, len(groups)), groups)


def _views(arrays: SampleArrays, *, most: int, scores: str | None) -> list[View]:
    """A view of each tensor; one of a single channel, or none, where there is no room for more."""
    views: list[View] = []
    room = most
    for name, array in arrays.items():
        view = _view(name, array, is_scores=name == scores)
        if view is not None and len(view.features) > room:
            whole = View(tensor=name, kind="channels", rank=view.rank, size=1)
            view = whole if len(whole.features) <= room else None
        if view is not None:
            views.append(view)
            room -= len(view.features)
    return views


def _view(name: str, array: Any, *, is_scores: bool) -> View | None:
    softmax = is_scores and not _are_shares(np.asarray(array))
    return view_of(name, np.asarray(array[0]), scores=is_scores, softmax=softmax)


def _are_shares(scores: NDArray[Any]) -> bool:
    """Whether scores [n, classes] are probabilities already."""
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    sums = np.abs(rows.sum(axis=1) - 1)
    return bool((rows >= 0).all() and (sums <= _SUM_TOLERANCE).all())


def _numbers(views: Sequence[View], arrays: SampleArrays, count: int) -> Floats:
    """[samples, features]; a sample of another shape than the first has none."""
    width = sum(len(view.features) for view in views)
    numbers = np.full((count, width), np.nan)
    for at in range(count):
        rows = [(view, view.row(np.asarray(arrays[view.tensor][at]), 0)) for view in views]
        measured = [view.measure(row) for view, row in rows if row is not None]
        if len(measured) == len(views):
            numbers[at] = np.concatenate(measured)
    return numbers
