"""How alike the answers of an artefact are to those of the float model; needs numpy alone.

Promise: each measure looks at what the model is used for, and is a ratio of two sums over samples,
so that it can be resampled by groups. 1 means the same answers.

| kind | counted | of |
|---|---|---|
| `top1` | samples with the same class | samples |
| `lines` | lines read the same: equal CTC sequences | lines |
| `neighbours` | embeddings whose nearest one, in another group, is the same one | embeddings |
| `threshold` | probabilities on the same side of .5 | samples |
| `odds` | probabilities whose odds stay within a factor of 1.5 | samples |
| `mask` | pixels above .3 in both | pixels above .3 in either |
| `boxes` | boxes of score .05 matched at IoU .5, in both | boxes of both |

A threshold for use would be higher than .05. It is as low as that because the photographs show
little of what the detector looks for, and because the float model is asked about, not the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.float64]
Measure = Callable[[Floats, Floats, NDArray[np.int64]], Counts]

_MIN_SCORE = 0.05
_DRAWS = 2000
_SEED = 11


def counts(kind: str, ours: Floats, theirs: Floats, groups: NDArray[np.int64]) -> Counts:
    """What agrees and out of how much, sample by sample: [n, 2].

    Args:
        kind: a key of the table above.
        ours: answers of the float model, [n, …].
        theirs: answers of the artefact, the same shape.
        groups: the source of each sample.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"answers have shape {list(theirs.shape)}, expected {list(ours.shape)}")
    return _KINDS[kind](ours, theirs, groups)


def ratio(table: Counts) -> float:
    """The measure itself; 1 where there was nothing to agree on."""
    agreed, out_of = table.sum(axis=0)
    return float(agreed / out_of) if out_of else 1.0


def interval(table: Counts, groups: NDArray[np.int64]) -> tuple[float, float]:
    """95 % of bootstrap draws in which whole groups are resampled (Davison and Hinkley, 1997)."""
    names = np.unique(groups)
    sums = np.stack([table[groups == name].sum(axis=0) for name in names])
    picks = np.random.default_rng(_SEED).integers(len(names), size=(_DRAWS, len(names)))
    agreed, out_of = np.moveaxis(sums[picks].sum(axis=1), -1, 0)
    values = np.divide(agreed, out_of, out=np.ones_like(agreed), where=out_of > 0)
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def cosine(kind: str, ours: Floats, theirs: Floats) -> float:
    """Mean cosine between the answers to each sample; 0 where an answer is not finite.

    Of `boxes` only the scores count: corners in pixels would drown them. Where an answer is one
    number, which has no direction, the answers to all samples are one vector.
    """
    if kind == "boxes":
        ours, theirs = ours[..., 4:, :], theirs[..., 4:, :]
    rows = len(ours) if ours[0].size > 1 else 1
    a, b = _unit(ours.reshape(rows, -1)), _unit(theirs.reshape(rows, -1))
    return float(np.nan_to_num((a * b).sum(axis=1)).mean())


def _each(same: NDArray[np.bool_]) -> Counts:
    return np.stack([same.astype(np.float64), np.ones(len(same))], axis=1)


def _top1(ours: Floats, theirs: Floats, _: NDArray[np.int64]) -> Counts:
    flat_a, flat_b = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    return _each(flat_a.argmax(axis=1) == flat_b.argmax(axis=1))


def _lines(ours: Floats, theirs: Floats, _: NDArray[np.int64]) -> Counts:
    pairs = zip(ours, theirs, strict=True)
    return _each(np.array([_collapsed(a) == _collapsed(b) for a, b in pairs]))


def _collapsed(line: Floats) -> list[int]:
    """A CTC sequence, [frames, classes], without repeats and blanks (class 0)."""
    best = line.reshape(-1, line.shape[-1]).argmax(axis=-1)
    kept = best[np.concatenate([[True], best[1:] != best[:-1]])]
    return [int(symbol) for symbol in kept if symbol]


def _neighbours(ours: Floats, theirs: Floats, groups: NDArray[np.int64]) -> Counts:
    return _each(_nearest(ours, groups) == _nearest(theirs, groups))


def _nearest(answers: Floats, groups: NDArray[np.int64]) -> NDArray[np.intp]:
    unit = _unit(answers.reshape(len(answers), -1))
    alike = np.where(groups[:, None] == groups[None, :], -np.inf, unit @ unit.T)
    found: NDArray[np.intp] = alike.argmax(axis=1)
    return found


def _threshold(ours: Floats, theirs: Floats, _: NDArray[np.int64]) -> Counts:
    flat_a, flat_b = ours.reshape(len(ours)), theirs.reshape(len(theirs))
    return _each((flat_a >= 0.5) == (flat_b >= 0.5))


def _odds(ours: Floats, theirs: Floats, _: NDArray[np.int64]) -> Counts:
    return _each(np.abs(_log_odds(ours) - _log_odds(theirs)) <= np.log(1.5))


def _log_odds(answers: Floats) -> NDArray[np.float64]:
    share = answers.reshape(len(answers), -1)[:, -1].astype(np.float64).clip(1e-9, 1 - 1e-9)
    odds: NDArray[np.float64] = np.log(share / (1 - share))
    return odds


def _mask(ours: Floats, theirs: Floats, _: NDArray[np.int64]) -> Counts:
    a, b = ours.reshape(len(ours), -1) > 0.3, theirs.reshape(len(theirs), -1) > 0.3
    return np.stack([(a & b).sum(axis=1), (a | b).sum(axis=1)], axis=1).astype(np.float64)


def _boxes(ours: Floats, theirs: Floats, _: NDArray[np.int64]) -> Counts:
    rows = []
    for a, b in zip(ours, theirs, strict=True):
        left, right = _detections(a), _detections(b)
        rows.append((2.0 * _matched(left, right), float(len(left) + len(right))))
    return np.array(rows)


def _detections(answer: Floats) -> list[tuple[int, Counts]]:
    """Class and corners of what a YOLOv8 head found, [1, 4 + classes, cells], the best first."""
    table = answer.reshape(-1, answer.shape[-1]).T.astype(np.float64)
    scores, kinds = table[:, 4:].max(axis=1), table[:, 4:].argmax(axis=1)
    corners = np.hstack([table[:, :2] - table[:, 2:4] / 2, table[:, :2] + table[:, 2:4] / 2])
    kept: list[tuple[int, Counts]] = []
    for cell in np.argsort(-scores, kind="stable"):
        if scores[cell] < _MIN_SCORE:
            break
        box = (int(kinds[cell]), corners[cell])
        if all(_iou(box[1], other) < 0.45 for kind, other in kept if kind == box[0]):
            kept.append(box)
    return kept


def _matched(left: list[tuple[int, Counts]], right: list[tuple[int, Counts]]) -> int:
    free = list(right)
    for kind, box in left:
        options = [(_iou(box, other), n) for n, (k, other) in enumerate(free) if k == kind]
        if options and max(options)[0] >= 0.5:
            free.pop(max(options)[1])
    return len(right) - len(free)


def _iou(a: Counts, b: Counts) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]))
    return shared / (areas - shared) if areas > shared else 0.0


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


_KINDS: Mapping[str, Measure] = {
    "top1": _top1,
    "lines": _lines,
    "neighbours": _neighbours,
    "threshold": _threshold,
    "odds": _odds,
    "mask": _mask,
    "boxes": _boxes,
}
