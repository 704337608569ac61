"""Dataset: a file or a folder as samples, checked once against what the model takes.

What fits here fits everywhere in a build: past this edge nobody looks for a missing input, another
datatype, a shape that does not fit or a value that is no number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.manifest import TensorSpec
from edgekit.steps import PreStep
from edgekit_converters import npz, pictures
from edgekit_converters.data import Samples
from edgekit_converters.rows import chunks
from edgekit_runtime.engines.batches import SampleArray, count_samples
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.pipeline import form_of

LABELS = "labels"
GROUPS = "groups"


def load(
    path: Path, inputs: Sequence[TensorSpec], *, steps: Sequence[PreStep], scratch: Path
) -> Samples:
    """Samples of a `.npz` file or a folder of pictures, checked.

    Args:
        path: a file with one array per input, and optionally `labels` and `groups`; or a folder
            with `labels.csv` (`file,label`), or with one folder per class, or just pictures.
        inputs: what the model takes.
        steps: turn a picture into an input; used for folders only.
        scratch: a folder on the disk for samples that must be unpacked or preprocessed.

    Raises:
        DataError: the data cannot be read or does not fit; the message names the array or file.
        StorageError: the scratch folder is full or cannot be written.
    """
    samples = read(path, inputs, steps=steps, scratch=scratch)
    check(samples, inputs, what=str(path))
    return samples


def read(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    steps: Sequence[PreStep],
    scratch: Path,
    unused: Collection[str] = (),
) -> Samples:
    """The same, not checked against the inputs yet; arrays named in `unused` are left out."""
    if path.is_dir():
        return _read_folder(path, inputs, steps, scratch)
    return _read_file(path, inputs, scratch, unused)


def check(samples: Samples, inputs: Sequence[TensorSpec], *, what: str) -> None:
    """Raise `DataError` where samples do not fit the inputs, or hold values that are not finite."""
    for spec in inputs:
        if spec.name not in samples.arrays:
            raise DataError(
                f"{what} has no array for input {spec.name!r}",
                hint=f"it needs {', '.join(spec.name for spec in inputs)};"
                f" it has {', '.join(samples.arrays) or 'none'}",
            )
        array = samples.arrays[spec.name]
        if array.dtype != DTYPES[spec.datatype]:
            raise DataError(
                f"{what}: {spec.name!r} is {array.dtype}, the model takes {spec.datatype}",
                hint=f"store it with .astype({DTYPES[spec.datatype].name!r})",
            )
    try:
        total = count_samples(inputs, samples.arrays)
    except DataError as e:
        raise DataError(f"{what}: {e.message}", hint=e.hint) from e
    for name, values in (("labels", samples.labels), ("groups", samples.groups)):
        if values is not None and len(values) != total:
            raise DataError(
                f"{what}: {name} has shape {list(values.shape)}, but there are {total} samples"
            )
    for name, array in samples.arrays.items():
        _check_finite(array, f"{what}: {name!r}")
    if samples.labels is not None:
        _check_finite(samples.labels, f"{what}: labels")


def _check_finite(array: SampleArray, what: str) -> None:
    if array.dtype.kind != "f":
        return
    seen = 0
    for samples in chunks(array):
        finite = np.isfinite(samples)
        if not finite.all():
            position = int(np.flatnonzero(~finite.reshape(len(samples), -1).all(axis=1))[0])
            kind = "NaN" if np.isnan(samples[position]).any() else "an infinite value"
            raise DataError(
                f"{what} holds {kind} in sample {seen + position}", hint="drop that sample"
            )
        seen += len(samples)


def _read_file(
    path: Path, inputs: Sequence[TensorSpec], scratch: Path, unused: Collection[str]
) -> Samples:
    arrays: dict[str, SampleArray] = dict(npz.read(path, scratch=scratch))
    wanted = {spec.name for spec in inputs}
    for name in set(unused) - wanted:
        arrays.pop(name, None)
    labels = arrays.pop(LABELS, None) if LABELS not in wanted else None
    groups = arrays.pop(GROUPS, None) if GROUPS not in wanted else None
    if unknown := sorted(set(arrays) - wanted):
        raise DataError(
            f"{path}: {unknown[0]!r} is no input of the model",
            hint=f"name its arrays {', '.join(sorted(wanted))}, and optionally labels and groups",
        )
    count = len(next(iter(arrays.values()))) if arrays else 0
    return Samples(
        arrays=arrays,
        labels=None if labels is None else _labels(labels, str(path)),
        groups=np.arange(count) if groups is None else _groups(groups, str(path)),
    )


def _labels(array: SampleArray, what: str) -> NDArray[Any]:
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{what}: labels are {array.dtype}, expected numbers",
            hint="give positions in the model's output, or targets of the shape it answers in",
        )
    values = np.asarray(array)
    return values.astype(np.int64) if values.ndim == 1 and values.dtype.kind != "f" else values


def _groups(array: SampleArray, what: str) -> NDArray[np.int64]:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{what}: groups is {array.dtype} {list(array.shape)}, expected integers [n]"
        )
    return np.asarray(array).astype(np.int64)


def _read_folder(
    path: Path, inputs: Sequence[TensorSpec], steps: Sequence[PreStep], scratch: Path
) -> Samples:
    if len(inputs) != 1:
        raise DataError(
            f"{path} is a folder of pictures, and the model has {len(inputs)} inputs",
            hint="give a .npz file with one array per input",
        )
    if not steps:
        raise DataError(
            f"{path} is a folder of pictures, and the recipe has no preprocess",
            hint="say in --recipe how a picture becomes an input",
        )
    given, taken = form_of(steps).datatype, inputs[0].datatype
    if given != taken:
        raise DataError(
            f"{path} is a folder of pictures, of which preprocess makes {given}, and the model"
            f" takes {taken}",
            hint=f"add {{op: dtype, to: {taken}}} to preprocess, or give a .npz file",
        )
    found = pictures.read(path, steps, scratch=scratch)
    return Samples(
        arrays={inputs[0].name: found.inputs},
        labels=found.labels,
        groups=np.arange(len(found.inputs)),
        names=found.names,
        files=found.files,
    )
