"""Counter: puts what a row of tensors shows into the bins of a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.drift.reference import Reference, bins_of
from edgekit.drift.views import View


@dataclass(frozen=True)
class Counter:
    """The inputs, or the outputs of one variant, as they are counted."""

    place: slice
    views: tuple[View, ...]
    names: tuple[str, ...]
    edges: NDArray[np.float64]
    counts: NDArray[np.uint16]

    def bins(self, tensors: Mapping[str, NDArray[Any]], position: int) -> NDArray[np.intp] | None:
        """Which bin each feature of one row is in; `None` for a row of another shape."""
        numbers = []
        for view in self.views:
            array = tensors.get(view.tensor)
            row = None if array is None else view.row(array, position)
            if row is None:
                return None
            numbers.append(view.measure(row))
        if not numbers:
            return None
        return bins_of(np.concatenate(numbers), self.edges)

    def add(self, block: NDArray[np.uint8], bins: NDArray[np.intp]) -> None:
        """Add a row to the counts [features of all parts, bins] of a block."""
        block[np.arange(self.place.start, self.place.stop), bins] += 1


def counters(reference: Reference) -> list[Counter]:
    """Inputs, then each variant; of the reference only arrays and names are kept."""
    parts, start = [], 0
    for part in (reference.inputs, *reference.variants.values()):
        names = tuple(feature.name for feature in part.features)
        place = slice(start, start + len(names))
        parts.append(Counter(place, part.views, names, part.edges(), part.counts()))
        start = place.stop
    return parts
