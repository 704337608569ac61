"""Regression: how far numbers are from their targets, as a share of how much the targets vary.

An error of 1 is that of a model which always answers the mean (for `mse`) or the median (for
`mae`), so that errors of any unit can be held against one budget. Each target counts as much as the
others. Without targets the float source is the truth, and each output counts as much.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import RecipeError
from edgekit_converters.metrics.scoring import (
    Case,
    Measure,
    Outputs,
    Scored,
    by_rows,
    numbers_of,
    of_samples,
    rows_of,
)
from edgekit_converters.statistics import Floats

Power = Literal[1, 2]


def targeted_output(outputs: Outputs, labels: NDArray[Any] | None) -> str | None:
    """The first output with as many numbers a sample as float labels have; None without one."""
    if labels is None or labels.dtype.kind != "f":
        return None
    size = labels[:1].size
    fits = (n for n, a in outputs.items() if a.dtype.kind == "f" and a[:1].size == size)
    return next(fits, None)


def _score(case: Case, power: Power) -> Scored:
    name = targeted_output(case.source, case.labels)
    if name is not None and case.labels is not None:
        truth = rows_of(case.labels)
        unit = np.array([_unit(column, power) for column in truth.T])
        before, after = (
            1 - _errors(truth, outputs[name], power, unit)
            for outputs in (case.source, case.artefact)
        )
        return of_samples("labels", after, before)
    if case.labels is not None and case.labels.dtype.kind == "f":
        shapes = ", ".join(f"{name!r} {list(a.shape)}" for name, a in case.source.items())
        raise RecipeError(
            f"metric {case.name}: labels {list(case.labels.shape)} fit no output; the model has"
            f" {shapes}",
            hint="store as many targets a sample as the output has numbers",
        )
    errors = [
        _errors(array, case.artefact[output], power, _unit(array, power))
        for output, array in numbers_of(case).items()
    ]
    return of_samples("float", 1 - np.mean(errors, axis=0))


def _errors(truth: NDArray[Any], found: NDArray[Any], power: Power, unit: Floats | float) -> Floats:
    return by_rows(lambda a, b: (np.abs(a - b) ** power / unit).mean(axis=1), truth, found)


def _unit(truth: NDArray[Any], power: Power) -> float:
    """The error of the best constant; 1 where the truth is one."""
    middle = float(truth.mean(dtype=np.float64) if power == 2 else np.median(truth))
    constant = np.broadcast_to(np.float64(middle), truth.shape)
    return float(_errors(truth, constant, power, 1.0).mean()) or 1.0


MSE = Measure(lambda case: _score(case, 2), kinds=("values",), is_error=True)
MAE = Measure(lambda case: _score(case, 1), kinds=("values",), is_error=True)
