"""Learner: a few epochs of training on this device's own samples, with the engine that serves.

A training step is an ordinary ONNX graph (`edgekit.training`): weights, optimiser state and a batch
go in, the loss and the new weights and state come out. Same weights, samples, settings and seed
give the same result.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.tensors import Arrays
from edgekit.training import UPDATED, TrainingSpec
from edgekit_runtime.engines import Session
from edgekit_runtime.engines.tensors import DTYPES

LOSS = "loss"


class OutOfTime(Exception):
    """The budget is over before the last step."""


class Diverged(Exception):
    """The loss or a weight is no finite number any more."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a round wants its devices to train."""

    epochs: int
    batch_size: int
    learning_rate: float


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        changes: weights after training minus before, by name.
        samples: how many there are.
        loss_before: mean over all samples with the weights given; `loss_after` with the new ones.
    """

    changes: Arrays
    samples: int
    loss_before: float
    loss_after: float


def read_samples(path: Path, spec: TrainingSpec, step: Session) -> Arrays:
    """Samples of a `.npz`: one array for each of the model's inputs, and the labels.

    Returns:
        arrays in the datatypes of the training step, all with the same number of samples on axis 0.

    Raises:
        DataError: the file cannot be read, or an array is missing or does not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise DataError(f"training data {path} cannot be read: {e}") from e
    wanted = {item.name: item for item in step.inputs}
    samples: Arrays = {}
    for source, name in [*((name, name) for name in spec.inputs), ("labels", spec.labels)]:
        if source not in found:
            raise DataError(f"training data {path} has no array {source!r}")
        samples[name] = _cast(found[source], DTYPES[wanted[name].datatype], f"{path}: {source}")
        if samples[name].shape[1:] != wanted[name].shape[1:]:
            raise DataError(
                f"{path}: {source} has shape {list(samples[name].shape)},"
                f" the model takes {list(wanted[name].shape)}"
            )
    counts = {len(array) for array in samples.values()}
    if len(counts) != 1 or counts == {0}:
        raise DataError(f"{path}: arrays must have the same number of samples, at least one")
    return samples


def check_weights(weights: Arrays, spec: TrainingSpec, step: Session) -> None:
    """Raise `DataError` where weights are not the ones that the training step takes."""
    if set(weights) != set(spec.parameters):
        odd = sorted(set(weights) ^ set(spec.parameters))
        raise DataError(f"weights differ from the training step in {odd[0]!r}")
    for item in step.inputs:
        if item.name not in weights:
            continue
        array, dtype = weights[item.name], DTYPES[item.datatype]
        if array.dtype != dtype or array.shape != item.shape:
            raise DataError(
                f"weight {item.name!r} is {array.dtype} {list(array.shape)},"
                f" the training step takes {dtype} {list(item.shape)}"
            )
        if not np.isfinite(array).all():
            raise DataError(f"weight {item.name!r} holds values that are not finite")


def learn(
    step: Session,
    evaluate: Session,
    spec: TrainingSpec,
    *,
    weights: Arrays,
    samples: Arrays,
    settings: Settings,
    rng: np.random.Generator,
    is_over: Callable[[], bool],
) -> Learned:
    """Train for some epochs.

    Args:
        step: `training/train.onnx`, open.
        evaluate: `training/evaluate.onnx`, open.
        spec: what the inputs are called.
        weights: to start from, checked.
        samples: from `read_samples`.
        settings: of the round.
        rng: shuffles.
        is_over: asked before every step whether the budget is used up.

    Raises:
        Diverged: a loss or a weight is not finite.
        OutOfTime: `is_over` said so.
        EngineError: the engine refused.
    """
    count = len(samples[spec.labels])
    size = settings.batch_size
    before = mean_loss(evaluate, samples, weights, batch_size=size, is_over=is_over)
    state: Arrays = dict(weights)
    state.update(_zero_states(step, spec))
    rate = {spec.learning_rate: np.asarray(settings.learning_rate, np.float32)}
    for _ in range(settings.epochs):
        for chosen in batches(count, size, rng=rng):
            if is_over():
                raise OutOfTime
            outputs = step.run({**_take(samples, chosen), **rate, **state})
            if not np.isfinite(outputs[LOSS]):
                raise Diverged
            state = {name: outputs[UPDATED + name] for name in state}
    trained = {name: state[name] for name in weights}
    after = mean_loss(evaluate, samples, trained, batch_size=size, is_over=is_over)
    changes = {name: trained[name] - weights[name] for name in weights}
    if not all(np.isfinite(change).all() for change in changes.values()):
        raise Diverged
    return Learned(changes=changes, samples=count, loss_before=before, loss_after=after)


def mean_loss(
    evaluate: Session,
    samples: Arrays,
    weights: Arrays,
    *,
    batch_size: int,
    is_over: Callable[[], bool],
) -> float:
    """Mean loss over all samples, raising `Diverged` where it is not finite."""
    count = len(next(iter(samples.values())))
    total = 0.0
    for start in range(0, count, batch_size):
        if is_over():
            raise OutOfTime
        chosen = np.arange(start, min(start + batch_size, count))
        total += len(chosen) * float(evaluate.run({**_take(samples, chosen), **weights})[LOSS])
    if not np.isfinite(total):
        raise Diverged
    return total / count


def batches(count: int, batch_size: int, *, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Positions of one epoch's batches, shuffled; a short last batch only where it is alone."""
    order = rng.permutation(count)
    for start in range(0, count, batch_size):
        chosen = order[start : start + batch_size]
        if len(chosen) == batch_size or start == 0:
            yield chosen


def _zero_states(step: Session, spec: TrainingSpec) -> Arrays:
    dtypes = {item.name: DTYPES[item.datatype] for item in step.inputs}
    return {name: np.zeros(shape, dtypes[name]) for name, shape in spec.states.items()}


def _take(samples: Mapping[str, NDArray[Any]], chosen: NDArray[np.intp]) -> Arrays:
    return {name: array[chosen] for name, array in samples.items()}


def _cast(array: NDArray[Any], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    if array.ndim == 0 or not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise DataError(f"{what} is {array.dtype} {list(array.shape)}, the model takes {dtype}")
    return array.astype(dtype, copy=False)
