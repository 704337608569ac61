"""Elimination: in which order channels go, so that what their readers compute changes least.

Optimal brain surgeon with whole channels as units: the error of removing a channel, after the best
change of all weights that remain, is closed-form in the inverse covariance of the reader's
features, and so is that change (Hassibi and Stork, "Second order derivatives for network pruning:
Optimal Brain Surgeon", 1992; for layers, by their inputs' covariance, Frantar and Alistarh,
"Optimal Brain Compression", 2022; for structures Kurtic et al., "ZipLM", 2023). Several channels go
in each turn, chosen by their errors alone; the weights then make up for all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.passes.pruning.layers import Matrix
from edgekit_converters.passes.pruning.moments import ridged

_SMALL = 1e-30


@dataclass(frozen=True)
class Problem:
    """One reader of a group.

    Attributes:
        weight: [outputs, features].
        covariance: of the features.
        positions: features of each unit, [units, k].
    """

    weight: Matrix
    covariance: Matrix
    positions: NDArray[np.intp]


@dataclass(frozen=True)
class Removal:
    """What one turn of the elimination did.

    Attributes:
        units: positions in the group of the units that went.
        weights: by reader, the weights after it, [outputs, features]; zero where features went.
            They change with the next turn.
    """

    units: NDArray[np.intp]
    weights: tuple[Matrix, ...]


def eliminate(problems: Sequence[Problem], turns: Sequence[int]) -> Iterator[Removal]:
    """Remove units, as many in each turn as `turns` says.

    Errors of several readers are added, each as a share of what the reader computes.
    """
    weights = [problem.weight.copy() for problem in problems]
    inverses = [inverse_of(problem.covariance) for problem in problems]
    scales = [1 / max(energy(p.weight, p.covariance), _SMALL) for p in problems]
    alive = np.arange(len(problems[0].positions))
    for count in turns:
        losses = np.zeros(len(alive), np.float64)
        for problem, weight, inverse, scale in zip(
            problems, weights, inverses, scales, strict=True
        ):
            losses += scale * _losses(weight, inverse, problem.positions[alive])
        least = np.argsort(losses, kind="stable")[:count]
        units = alive[np.sort(least)]
        alive = np.delete(alive, least)
        for problem, weight, inverse in zip(problems, weights, inverses, strict=True):
            _remove(weight, inverse, problem.positions[units].reshape(-1))
        yield Removal(units, tuple(weights))


def inverse_of(covariance: Matrix) -> Matrix:
    """The inverse of a covariance with its ridge."""
    return np.asarray(np.linalg.inv(ridged(covariance)), np.float64)


def energy(weight: Matrix, covariance: Matrix) -> float:
    """Variance of what a layer computes, summed over its outputs."""
    return float(np.einsum("of,of->", weight @ covariance, weight))


def fitted(weight: Matrix, covariance: Matrix, kept: NDArray[np.bool_]) -> Matrix:
    """Weights of the kept features, [outputs, kept], that stand in best for all of them."""
    regular = ridged(covariance)
    within = regular[np.ix_(kept, kept)]
    return np.asarray(np.linalg.solve(within, regular[kept] @ weight.T).T, np.float64)


def _losses(weight: Matrix, inverse: Matrix, positions: NDArray[np.intp]) -> Matrix:
    if positions.shape[1] == 1:
        features = positions[:, 0]
        squares = np.square(weight[:, features]).sum(axis=0)
        return np.asarray(squares / np.diag(inverse)[features], np.float64)
    blocks = inverse[positions[:, :, np.newaxis], positions[:, np.newaxis, :]]
    columns = weight.T[positions]
    losses = np.einsum("uko,uko->u", columns, np.linalg.solve(blocks, columns))
    return np.asarray(losses, np.float64)


def _remove(weight: Matrix, inverse: Matrix, features: NDArray[np.intp]) -> None:
    """Take features out, in place: the others make up for them."""
    block = np.linalg.inv(inverse[np.ix_(features, features)])
    columns = inverse[:, features]
    change = block @ columns.T
    weight -= weight[:, features] @ change
    weight[:, features] = 0
    inverse -= columns @ change
    inverse[features] = 0
    inverse[:, features] = 0
