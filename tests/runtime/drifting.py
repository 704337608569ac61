"""References and streams of a small model: its input is 16 numbers, its answer 4 scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekit.drift.reference import Part, Reference, part_of
from edgekit.drift.views import View, view_of
from tests import bundles

Floats32 = NDArray[np.float32]


def inputs(count: int, *, seed: int, shift: float = 0.0) -> Floats32:
    """Samples [count, 16]; `shift` is added to the first number."""
    found = np.random.default_rng(seed).standard_normal((count, bundles.FEATURES))
    found[:, 0] += shift
    return found.astype(np.float32)


def answers(samples: Floats32) -> Floats32:
    """Scores [n, 4] that depend on the samples."""
    return samples[:, :4] * np.float32(2)


def part(view: View | None, rows: Floats32) -> Part:
    assert view is not None
    numbers = np.array([view.measure(row) for row in rows])
    return part_of([view], numbers, np.arange(len(rows)))


def reference(*, count: int = 400, seed: int = 0, variant: str = "float") -> Reference:
    """What `count` samples are, and what a variant answers to them."""
    samples = inputs(count, seed=seed)
    given = answers(samples)
    return Reference(
        inputs=part(view_of("x", samples[0]), samples),
        variants={variant: part(view_of("y", given[0], scores=True, softmax=True), given)},
    )
