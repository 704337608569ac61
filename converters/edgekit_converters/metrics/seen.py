"""Seen: what the float source and an artefact see on one picture, small enough for a report.

Boxes are those that `box_agreement` counts: sure ones, and what the other model has as their
partner. Masks become one map of how the two differ, thinned to the size of a thumbnail: each cell
tells of the pixel in its middle, so that a difference looks neither larger nor smaller than it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict
from edgekit_converters.metrics.boxes import Boxes, read
from edgekit_converters.metrics.detection import SURE, partners
from edgekit_converters.metrics.scoring import Case, Outputs
from edgekit_converters.metrics.segmentation import Mask, reader

MOST_BOXES = 20
MOST_CELLS = 160
"""Of the longer side of a map."""


class SeenBox(Strict, frozen=True, kw_only=True):
    """One box.

    Attributes:
        corners: x1, y1, x2, y2, in the unit of the model: pixels, or shares of the picture.
        alone: it is sure, and the other model has no partner for it.
    """

    corners: tuple[float, float, float, float]
    score: float
    label: int
    alone: bool


class SeenBoxes(Strict, frozen=True, kw_only=True):
    """The boxes of both models on one picture, best first."""

    source: tuple[SeenBox, ...]
    artefact: tuple[SeenBox, ...]


class Cell(IntEnum):
    """How two masks differ at a pixel; class 0 is the background."""

    SAME = 0
    ONLY_SOURCE = 1
    ONLY_ARTEFACT = 2
    OTHER_CLASS = 3


class SeenMask(Strict, frozen=True, kw_only=True):
    """How two masks of one picture differ.

    Attributes:
        changed: share of all pixels.
        cells: `Cell` of each cell, one byte each, row by row, deflated (RFC 1950).
    """

    height: int
    width: int
    changed: float
    cells: bytes

    def map(self) -> NDArray[np.uint8]:
        """The cells [height, width]."""
        raw = np.frombuffer(zlib.decompress(self.cells), np.uint8)
        cells: NDArray[np.uint8] = raw.reshape(self.height, self.width)
        return cells


Seen = SeenBoxes | SeenMask


def seen(case: Case, positions: Sequence[int]) -> list[Seen | None]:
    """What both models see at these positions; None where the answer is neither boxes nor masks."""
    view = case.view
    if view.kind == "boxes":
        return [
            boxes_of(*(read(view, _one(outputs, i))[0] for outputs in (case.source, case.artefact)))
            for i in positions
        ]
    if view.kind == "masks":
        before, after = case.source[view.output], case.artefact[view.output]
        mask = reader(view, before)
        return [mask_of(mask(before[i]), mask(after[i])) for i in positions]
    return [None] * len(positions)


def boxes_of(before: Boxes, after: Boxes) -> SeenBoxes:
    """The sure boxes of either model, and their partners in the other."""
    pairs = partners(before, after)
    return SeenBoxes(source=_drawn(before, pairs), artefact=_drawn(after, pairs.T))


def mask_of(before: Mask, after: Mask) -> SeenMask:
    """Where two masks [h, w] differ."""
    step = max(1, -(-max(before.shape) // MOST_CELLS))
    first = step // 2
    own, other = before[first::step, first::step], after[first::step, first::step]
    height, width = own.shape
    cells = np.full((height, width), Cell.OTHER_CLASS, np.uint8)
    cells[other == 0] = Cell.ONLY_SOURCE
    cells[own == 0] = Cell.ONLY_ARTEFACT
    cells[own == other] = Cell.SAME
    return SeenMask(
        height=height,
        width=width,
        changed=float((before != after).mean()),
        cells=zlib.compress(cells.tobytes(), 9),
    )


def _one(outputs: Outputs, position: int) -> dict[str, NDArray[Any]]:
    return {name: array[position : position + 1] for name, array in outputs.items()}


def _drawn(boxes: Boxes, pairs: NDArray[np.bool_]) -> tuple[SeenBox, ...]:
    """Of boxes [k] with their partners [k, l] in the other model, those that count."""
    paired: NDArray[np.bool_] = np.asarray(pairs.any(axis=1))
    shown = np.flatnonzero((boxes.scores >= SURE) | paired)[:MOST_BOXES]
    return tuple(
        SeenBox(
            corners=tuple(boxes.corners[i].round(4).tolist()),
            score=round(float(boxes.scores[i]), 4),
            label=int(boxes.classes[i]),
            alone=not bool(paired[i]),
        )
        for i in shown
    )
