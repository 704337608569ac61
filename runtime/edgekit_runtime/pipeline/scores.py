"""Scores: to probabilities, and the best classes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.steps import Activation, TopK


class Ranked(NamedTuple):
    """The best classes of each sample, best first.

    Attributes:
        indices: int64 [n, k].
        scores: float32 [n, k].
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]


def activated(values: NDArray[Any], activation: Activation) -> NDArray[np.float32]:
    """Values as float32, after an activation; softmax is over the last axis."""
    numbers = values.astype(np.float32)
    # What is no number stays none, and is told apart by whoever reads it.
    with np.errstate(invalid="ignore"):
        if activation == "softmax":
            return softmax(numbers)
        return sigmoid(numbers) if activation == "sigmoid" else numbers


def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities over the last axis; the largest value is taken off first, so none overflows."""
    powers: NDArray[np.float32] = np.exp(values - values.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)), written with tanh, which does not overflow."""
    half: NDArray[np.float32] = np.tanh(values * np.float32(0.5))
    half *= np.float32(0.5)
    half += np.float32(0.5)
    return half


def ranked(scores: NDArray[np.float32], step: TopK) -> Ranked:
    """The best classes of scores [n, c]; equal ones rank by index, on every machine alike."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, : step.k]
    return Ranked(order.astype(np.int64), np.take_along_axis(scores, order, axis=1))
