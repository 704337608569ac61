"""Sequences: how much of a text or a series of tokens is right, by edit distance.

The score of a sample is 1 - d / max(lengths), where d counts insertions, deletions and changes
(Levenshtein, Soviet Physics Doklady 10, 1966). Scores [n, t, c] are read as connectionist temporal
classification does: the best class of each step, repeats joined, blanks dropped (Graves et al.,
ICML 2006). Where labels have as many steps as the output and one of them is full, each step has a
token of its own, and nothing is joined. Integers [n, t] are tokens; negative ones are padding.
Without labels the float source's sequence is the truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.metrics.scoring import Case, Measure, Scored, of_samples
from edgekit_converters.statistics import Floats

Tokens = list[NDArray[np.int64]]


def similarities(a: Tokens, b: Tokens) -> Floats:
    """1 - edit distance / length of the longer sequence, [n]; 1 where both are empty."""
    sizes = np.array([max(len(x), len(y), 1) for x, y in zip(a, b, strict=True)])
    similarity: Floats = 1 - distances(a, b) / sizes
    return similarity


def distances(a: Tokens, b: Tokens) -> NDArray[np.int64]:
    """Edit distances [n], of all pairs at once, row by row of the usual table."""
    left, right = _padded(a, filler=-1), _padded(b, filler=-2)
    a_sizes, b_sizes = (np.array([len(x) for x in tokens], np.int64) for tokens in (a, b))
    steps = np.arange(right.shape[1] + 1)
    row = np.broadcast_to(steps, (len(a), len(steps))).astype(np.int64)
    found = row[np.arange(len(a)), b_sizes]
    for i in range(left.shape[1]):
        changed = row[:, :-1] + (left[:, [i]] != right)
        best = np.concatenate([row[:, :1] + 1, np.minimum(row[:, 1:] + 1, changed)], axis=1)
        # An insertion costs 1 a step: the least of what came before, each plus its way.
        row = np.minimum.accumulate(best - steps, axis=1) + steps
        ended = a_sizes == i + 1
        found[ended] = row[ended, b_sizes[ended]]
    return found


def joined(best: NDArray[Any], blank: int) -> Tokens:
    """Best classes [n, t] as sequences: repeats joined, then blanks dropped."""
    starts = np.ones(best.shape, bool)
    starts[:, 1:] = best[:, 1:] != best[:, :-1]
    keep = starts & (best != blank)
    return [row[kept].astype(np.int64) for row, kept in zip(best, keep, strict=True)]


def _score(case: Case) -> Scored:
    before, after = case.source[case.view.output], case.artefact[case.view.output]
    labels = case.labels if _is_tokens(case.labels) else None
    if case.view.axis == 0:
        own, found = _unpadded(before), _unpadded(after)
    else:
        before, after = _best(before), _best(after)
        if labels is not None and _is_aligned(labels, before.shape[1]):
            counts = labels >= 0
            own, found = ([r[k] for r, k in zip(x, counts, strict=True)] for x in (before, after))
        else:
            blank = _blank(case, before, labels)
            own, found = joined(before, blank), joined(after, blank)
    if labels is None:
        return of_samples("float", similarities(own, found))
    truth = _unpadded(labels)
    return of_samples("labels", similarities(truth, found), similarities(truth, own))


def _best(scores: NDArray[Any]) -> NDArray[np.int64]:
    steps = scores.reshape(len(scores), *(size for size in scores.shape[1:] if size > 1))
    best: NDArray[np.int64] = steps.argmax(axis=2).astype(np.int64)
    return best


def _blank(case: Case, best: NDArray[np.int64], labels: NDArray[Any] | None) -> int:
    """The class that means nothing: the first or the last.

    Labels never hold it. Where they tell nothing it is the one that the source answers more often,
    as most steps of a text are blank.
    """
    scores = case.source[case.view.output]
    last = scores.shape[-1] - 1
    if labels is not None:
        holds_first, holds_last = bool((labels == 0).any()), bool((labels == last).any())
        if holds_first != holds_last:
            return last if holds_first else 0
    return last if (best == last).sum() > (best == 0).sum() else 0


def _is_tokens(labels: NDArray[Any] | None) -> bool:
    return labels is not None and labels.ndim == 2 and labels.dtype.kind in "iu"


def _is_aligned(labels: NDArray[Any], steps: int) -> bool:
    return labels.shape[1] == steps and bool((labels >= 0).all(axis=1).any())


def _unpadded(tokens: NDArray[Any]) -> Tokens:
    return [row[row >= 0].astype(np.int64) for row in tokens]


def _padded(tokens: Tokens, *, filler: int) -> NDArray[np.int64]:
    width = max((len(row) for row in tokens), default=0)
    table = np.full((len(tokens), width), filler, np.int64)
    for row, values in zip(table, tokens, strict=True):
        row[: len(values)] = values
    return table


EDIT_DISTANCE = Measure(_score, kinds=("sequences",))
