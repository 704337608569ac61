"""User: a metric of the user's own, `module:function` in the recipe.

    function(outputs: Mapping[str, ndarray], labels: ndarray | None) -> ndarray [n]

It is called once for the float source and once for the artefact, with outputs by name and the
labels of the same samples, and gives each sample a score: higher is better, 1 is as good as can
be, and a sample that is lost has 0. It is looked for in the current folder first, then among
installed packages. Whatever it does wrong becomes a `RecipeError` that names it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgekit import registry
from edgekit.errors import RecipeError
from edgekit_converters.metrics.scoring import Case, Measure, Outputs, Scored, of_samples
from edgekit_converters.statistics import Floats

_SIGNATURE = "function(outputs, labels) -> scores [n]"


def measure(target: str) -> Measure:
    """The metric that calls `module:function`.

    Raises:
        RecipeError: it cannot be imported, or is not a function.
    """
    function = _load(target)

    def score(case: Case) -> Scored:
        before = _call(target, function, case.source, case)
        after = _call(target, function, case.artefact, case)
        return of_samples("function" if case.labels is None else "labels", after, before)

    return Measure(score, kinds=None)


def identity(target: str) -> str:
    """A digest of the file that defines the function: it changes when the function may have."""
    _load(target)
    file = sys.modules[target.partition(":")[0]].__file__
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else target


def _load(target: str) -> Callable[..., object]:
    with _current_folder():
        try:
            function = registry.load(target)
        except Exception as e:
            raise RecipeError(
                f"metric {target} cannot be imported: {type(e).__name__}: {e}",
                hint="module:function is looked for in the current folder and among installed"
                " packages",
            ) from e
    if not callable(function):
        raise RecipeError(f"metric {target} is not a function", hint=f"write {_SIGNATURE}")
    return function


def _call(target: str, function: Callable[..., object], outputs: Outputs, case: Case) -> Floats:
    with _current_folder():
        try:
            given = np.asarray(function(dict(outputs), case.labels))
        except Exception as e:
            raise RecipeError(
                f"metric {target} failed on {case.samples} samples: {type(e).__name__}: {e}",
                hint=f"it is called as {_SIGNATURE}",
            ) from e
    if given.shape != (case.samples,) or given.dtype.kind not in "fiub":
        raise RecipeError(
            f"metric {target} gave {given.dtype} {list(given.shape)}, expected one score a sample:"
            f" [{case.samples}]",
            hint=f"write {_SIGNATURE}",
        )
    scores: Floats = given.astype(np.float64)
    if not np.isfinite(scores).all():
        position = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise RecipeError(f"metric {target} gave {scores[position]} for sample {position}")
    return scores


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder can be imported from, as for `python -m`."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
