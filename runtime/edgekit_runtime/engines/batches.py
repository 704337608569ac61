"""Running a session over many samples: the one rule of how samples stand in arrays.

Axis 0 of an array counts samples; the array may lie in memory, or in a file that is read batch by
batch. Where the model's input has a batch dimension (its first, dynamic or 1), samples stand in its
place; an array with one axis more than the input holds whole inputs. Outputs come back the same
way: axis 0 counts samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, EngineError
from edgekit.manifest import TensorSpec
from edgekit_runtime.engines import Session
from edgekit_runtime.engines.tensors import fits, has_batch_axis

MAX_BATCH = 32


class SampleArray(Protocol):
    """Samples of one tensor: a numpy array, or what is indexed like one along axis 0."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any:
        """In memory: one sample, or those of a slice or of an array of positions."""
        ...

    def __array__(self) -> NDArray[Any]:
        """All samples in memory."""
        ...


SampleArrays = Mapping[str, SampleArray]


def count_samples(specs: Sequence[TensorSpec], arrays: SampleArrays) -> int:
    """How many samples `arrays` hold, raising `DataError` that names the array that does not fit.

    Datatypes are the engine's to check.
    """
    unknown = sorted(set(arrays) - {spec.name for spec in specs})
    if unknown:
        raise DataError(f"there is no input {unknown[0]!r} in the model")
    counts: dict[str, int] = {}
    for spec in specs:
        if spec.name not in arrays:
            raise DataError(f"input {spec.name!r} has no samples")
        array = arrays[spec.name]
        stands_in = has_batch_axis(spec) and fits((spec.shape[0], *array.shape[1:]), spec)
        if not (stands_in or (array.ndim and fits(array.shape[1:], spec))):
            raise DataError(
                f"samples of input {spec.name!r} have shape {list(array.shape)}, which does not"
                f" fit {list(spec.shape)}",
                hint="axis 0 counts samples",
            )
        counts[spec.name] = array.shape[0]
    if len(set(counts.values())) != 1:
        raise DataError(f"inputs hold different numbers of samples: {counts}")
    return counts[specs[0].name]


def can_batch(session: Session) -> bool:
    """Whether every input and output of the model leaves axis 0 to the caller."""
    return all(spec.shape[:1] == (-1,) for spec in (*session.inputs, *session.outputs))


def iter_batches(
    specs: Sequence[TensorSpec], arrays: SampleArrays, *, size: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """The samples in order, as inputs for `Session.run`, at most `size` in each.

    A `size` above 1 is right only where every input's axis 0 is dynamic and holds the samples.
    """
    total = count_samples(specs, arrays)
    whole = {spec.name: arrays[spec.name].ndim > len(spec.shape) for spec in specs}
    for start in range(0, total, size):
        yield {
            # An ellipsis keeps a scalar sample a 0-d array.
            name: arrays[name][start, ...] if whole[name] else arrays[name][start : start + size]
            for name in whole
        }


def run_all(
    session: Session, arrays: SampleArrays, *, max_batch: int = MAX_BATCH
) -> dict[str, NDArray[Any]]:
    """Every output for every sample, stacked on axis 0.

    Batches are used where the model takes them, else the samples are run one by one.

    Args:
        session: an open model.
        arrays: samples by input name, axis 0 counting them.
        max_batch: samples in one run at most; bounds the memory of activations.

    Raises:
        DataError: the arrays do not fit the inputs, or there are no samples.
        EngineError: the engine refused, or outputs of two samples differ in shape.
    """
    total = count_samples(session.inputs, arrays)
    if total == 0:
        raise DataError("there are no samples to run")
    in_place = all(arrays[spec.name].ndim == len(spec.shape) for spec in session.inputs)
    size = max_batch if in_place and can_batch(session) else 1
    parts: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in session.outputs}
    for start, inputs in zip(
        range(0, total, size), iter_batches(session.inputs, arrays, size=size), strict=True
    ):
        for name, output in session.run(inputs).items():
            parts[name].append(_by_sample(name, output, min(size, total - start)))
    return {name: _joined(name, outputs) for name, outputs in parts.items()}


def _by_sample(name: str, output: NDArray[Any], count: int) -> NDArray[Any]:
    if output.ndim and output.shape[0] == count:
        return output
    if count == 1:
        return output[np.newaxis]
    raise EngineError(
        f"output {name!r} has {list(output.shape)} for {count} samples",
        hint="run with max_batch=1",
    )


def _joined(name: str, outputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    try:
        return np.concatenate(outputs)
    except ValueError as e:
        raise EngineError(f"output {name!r} differs in shape from sample to sample: {e}") from e
