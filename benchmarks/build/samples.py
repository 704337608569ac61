"""Samples of a `.npz`, one at a time, as an inference takes them; needs numpy alone.

The rule is that of `edgekit build --data`: axis 0 of every array counts samples. A sample of an
array that has as many axes as the model's input stands in the batch dimension; one with an axis
more is the whole input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUPS, LABELS = "groups", "labels"
_SEED = 7

Arrays = Mapping[str, NDArray[Any]]


def load(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of a data file, `groups` and `labels` among them."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def feeds(arrays: Arrays, ranks: Mapping[str, int]) -> list[dict[str, NDArray[Any]]]:
    """One set of inputs a sample; `ranks` has each input's number of axes."""
    count = len(arrays[next(iter(ranks))])
    return [
        {
            # Not ascontiguousarray: that turns a scalar input into one of one axis.
            name: np.array(
                arrays[name][position]
                if arrays[name].ndim > rank
                else arrays[name][position : position + 1]
            )
            for name, rank in ranks.items()
        }
        for position in range(count)
    ]


def divide(groups: NDArray[np.int64], share: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions given to the tools, about `share` of the groups, and positions held out."""
    names = np.unique(groups)
    order = np.random.default_rng(_SEED).permutation(names)
    given = np.isin(groups, order[: max(1, round(share * len(names)))])
    return np.flatnonzero(given), np.flatnonzero(~given)


def spread(positions: Sequence[int] | NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most `most` of the positions, evenly spread."""
    array = np.asarray(positions, np.intp)
    if len(array) <= most:
        return array
    return array[np.linspace(0, len(array) - 1, most).round().astype(np.intp)]


def take(arrays: Arrays, positions: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """The samples at some positions."""
    return {name: array[positions] for name, array in arrays.items()}
