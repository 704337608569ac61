"""Data: samples that calibrate and prove an artefact, checked once against the model's inputs.

Axis 0 of every array counts samples, as `edgekit_runtime.engines.batches` says. Samples are split
into calibration, golden and evaluation parts that never share a sample, nor a group: crops of one
photograph never stand on both sides. The same data and split give the same parts.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.manifest import TensorSpec
from edgekit.recipe import PreStep, Split
from edgekit_runtime.engines.batches import count_samples
from edgekit_runtime.engines.tensors import DTYPES, has_batch_axis
from edgekit_runtime.pipeline import MAX_FILE_BYTES, preprocess

LABELS = "labels"
GROUPS = "groups"
MIN_EVALUATION = 20
"""Samples below which a figure of accuracy proves nothing."""

_MAX_SYNTHETIC_BYTES = 1 << 30
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
_INDEX = "labels.csv"

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Samples:
    """Samples of a model's inputs.

    Attributes:
        arrays: input name to samples, axis 0 counting them.
        labels: int64 [n], what a sample shows; None where nobody said.
        groups: int64 [n], samples with one number belong together.
        names: class names by label, where the data names its classes.
    """

    arrays: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    groups: NDArray[np.int64]
    names: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.groups)

    def take(self, which: Indices) -> Samples:
        """The samples at these positions."""
        return Samples(
            arrays={name: array[which] for name, array in self.arrays.items()},
            labels=None if self.labels is None else self.labels[which],
            groups=self.groups[which],
            names=self.names,
        )


@dataclass(frozen=True)
class Parts:
    """The three uses of data. `evaluation` and `calibration` are None without given data."""

    golden: Samples
    calibration: Samples | None = None
    evaluation: Samples | None = None
    origin: Literal["given", "synthetic"] = "given"
    notes: tuple[str, ...] = field(default=())

    @property
    def enough(self) -> bool:
        """Whether there is enough to judge an artefact by."""
        return self.evaluation is not None and self.evaluation.count >= MIN_EVALUATION


def load(path: Path, inputs: Sequence[TensorSpec], *, steps: Sequence[PreStep]) -> Samples:
    """Read samples from a `.npz` file or a folder of pictures.

    Args:
        path: a file with one array per input, and optionally `labels` and `groups`; or a folder
            with `labels.csv` (`file,label`), or with one folder per class, or just pictures.
        inputs: what the model takes.
        steps: turn a picture into an input; used for folders only.

    Raises:
        DataError: the data cannot be read or does not fit; the message names the array or file.
    """
    samples = _folder(path, inputs, steps) if path.is_dir() else _npz(path, inputs)
    check(samples, inputs, what=str(path))
    return samples


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
        if values is not None and values.shape != (total,):
            raise DataError(f"{what}: {name} has shape {list(values.shape)}, expected [{total}]")
    for name, array in samples.arrays.items():
        if array.dtype.kind == "f":
            _check_finite(array, f"{what}: {name!r}")


def check_labels(parts: Parts, classes: int, *, what: str) -> None:
    """Raise `DataError` for a label that the model has no class for."""
    for part in (parts.golden, parts.calibration, parts.evaluation):
        if part is None or part.labels is None:
            continue
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise DataError(
                f"{what}: labels hold {wrong}, the model has classes 0 to {classes - 1}",
                hint="labels are positions in the model's output",
            )


def split(samples: Samples, rule: Split) -> Parts:
    """Divide samples by whole groups.

    Groups are put in an order drawn from `rule.seed`. The first ones fill the golden part until it
    has `rule.golden` samples; what is left of the last of them is not used, as it would stand on
    two sides. The next ones fill calibration up to its share of all samples. The rest evaluates.

    Raises:
        DataError: there are too few samples or groups for three parts.
    """
    names, sizes = np.unique(samples.groups, return_counts=True)
    if samples.count < rule.golden + 2 or len(names) < 3:
        raise DataError(
            f"{samples.count} samples in {len(names)} groups cannot be split into calibration,"
            f" golden ({rule.golden}) and evaluation",
            hint=f"give at least {rule.golden + 2} samples in 3 groups, or set split in the recipe",
        )
    order = np.random.default_rng(rule.seed).permutation(len(names))
    total = np.cumsum(sizes[order])
    golden_groups = int(np.searchsorted(total, rule.golden) + 1)
    wanted = max(1, round(rule.calibration * samples.count))
    left = total - total[golden_groups - 1]
    calibration_groups = max(1, int(np.searchsorted(left[golden_groups:], wanted, side="right")))
    # Evaluation keeps one group at least, whatever the shares say.
    calibration_groups = min(calibration_groups, len(names) - golden_groups - 1)
    if golden_groups + 2 > len(names) or calibration_groups < 1:
        raise DataError(
            f"{len(names)} groups are too few for calibration, golden and evaluation",
            hint="give more groups, or fewer golden samples in the recipe's split",
        )
    ordered = names[order]
    golden = _positions(samples, ordered[:golden_groups])[: rule.golden]
    until = golden_groups + calibration_groups
    calibration = _positions(samples, ordered[golden_groups:until])
    evaluation = _positions(samples, ordered[until:])
    notes = []
    if len(evaluation) < MIN_EVALUATION:
        notes.append(
            f"{len(evaluation)} samples evaluate, fewer than {MIN_EVALUATION}: nothing is proven"
        )
    return Parts(
        golden=samples.take(golden),
        calibration=samples.take(calibration),
        evaluation=samples.take(evaluation),
        notes=tuple(notes),
    )


def bounded(samples: Samples, most: int) -> Samples:
    """At most `most` samples, evenly spread."""
    if samples.count <= most:
        return samples
    return samples.take(np.linspace(0, samples.count - 1, most).round().astype(np.intp))


def synthetic(inputs: Sequence[TensorSpec], rule: Split) -> Parts:
    """Golden inputs for a model without data: seeded noise, enough to compare two engines.

    Floats are standard normal, integers and booleans 0 or 1, the values that index any table.

    Raises:
        DataError: an input has an axis whose size nobody knows, or holds texts.
    """
    rng = np.random.default_rng(rule.seed)
    arrays = {}
    for spec in inputs:
        inner = spec.shape[1:] if has_batch_axis(spec) else spec.shape
        if -1 in inner or spec.datatype == "BYTES":
            raise DataError(
                f"input {spec.name!r} {list(spec.shape)} cannot be made up without data",
                hint=f"fix its shape with --input {spec.name}=…, or give --data",
            )
        shape, dtype = (rule.golden, *inner), DTYPES[spec.datatype]
        if prod(shape) * dtype.itemsize > _MAX_SYNTHETIC_BYTES:
            raise DataError(
                f"input {spec.name!r} {list(spec.shape)} is too large to be made up",
                hint=f"fix a smaller shape with --input {spec.name}=…, or give --data",
            )
        noise = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        arrays[spec.name] = noise.astype(dtype)
    groups = np.arange(rule.golden, dtype=np.int64)
    return Parts(
        golden=Samples(arrays, None, groups),
        origin="synthetic",
        notes=(
            "no --data: golden inputs are synthetic, no static int8 was made, accuracy is unknown",
        ),
    )


def _positions(samples: Samples, groups: NDArray[np.int64]) -> Indices:
    return np.flatnonzero(np.isin(samples.groups, groups))


def _check_finite(array: NDArray[Any], what: str) -> None:
    for position, sample in enumerate(array):
        if not np.isfinite(sample).all():
            kind = "NaN" if np.isnan(sample).any() else "an infinite value"
            raise DataError(f"{what} holds {kind} in sample {position}", hint="drop that sample")


def _npz(path: Path, inputs: Sequence[TensorSpec]) -> Samples:
    try:
        # numpy leaves a file open where it is no zip after all.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as e:
        raise DataError(
            f"data {path} cannot be read: {e.strerror or e}",
            hint="give a .npz file or a folder of pictures",
        ) from e
    except (ValueError, EOFError, zipfile.BadZipFile, MemoryError, AttributeError, TypeError) as e:
        raise DataError(
            f"data {path} is not a .npz file of plain arrays, or is cut off: {e}",
            hint="write it with numpy.savez(path, INPUT=…, labels=…)",
        ) from e
    wanted = {spec.name for spec in inputs}
    labels = arrays.pop(LABELS, None) if LABELS not in wanted else None
    groups = arrays.pop(GROUPS, None) if GROUPS not in wanted else None
    if unknown := sorted(set(arrays) - wanted):
        raise DataError(
            f"{path}: {unknown[0]!r} is no input of the model",
            hint=f"name its arrays {', '.join(sorted(wanted))}, and optionally labels and groups",
        )
    for name, array in arrays.items():
        if array.ndim == 0:
            raise DataError(f"{path}: {name!r} is a scalar; axis 0 must count samples")
    count = len(next(iter(arrays.values()))) if arrays else 0
    return Samples(
        arrays=arrays,
        labels=None if labels is None else _integers(labels, f"{path}: labels"),
        groups=np.arange(count, dtype=np.int64)
        if groups is None
        else _integers(groups, f"{path}: groups"),
    )


def _integers(array: NDArray[Any], what: str) -> NDArray[np.int64]:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{what} is {array.dtype} {list(array.shape)}, expected integers [n]")
    return array.astype(np.int64)


def _folder(path: Path, inputs: Sequence[TensorSpec], steps: Sequence[PreStep]) -> Samples:
    if len(inputs) != 1 or inputs[0].datatype != "FP32":
        raise DataError(
            f"{path} is a folder of pictures, and the model does not take one FP32 picture",
            hint="give a .npz file with one array per input",
        )
    if not steps:
        raise DataError(
            f"{path} is a folder of pictures, and the recipe has no preprocess",
            hint="say in --recipe how a picture becomes an input",
        )
    entries, names = _listing(path)
    if not entries:
        raise DataError(f"{path} holds no pictures", hint=f"known: {', '.join(sorted(_PICTURES))}")
    pictures: list[NDArray[np.float32]] = []
    for file, _ in entries:
        array = preprocess(steps, _read_picture(file), what=str(file))
        if pictures and array.shape != pictures[0].shape:
            raise DataError(
                f"{file} becomes {list(array.shape)}, others {list(pictures[0].shape)}",
                hint="resize to one width and height in the recipe's preprocess",
            )
        pictures.append(array)
    labelled = [label for _, label in entries if label is not None]
    return Samples(
        arrays={inputs[0].name: np.stack(pictures)},
        labels=np.array(labelled, np.int64) if len(labelled) == len(entries) else None,
        groups=np.arange(len(entries), dtype=np.int64),
        names=names,
    )


def _listing(path: Path) -> tuple[list[tuple[Path, int | None]], tuple[str, ...]]:
    """Each picture with its label, and the names of classes where folders name them."""
    index = path / _INDEX
    if index.is_file():
        return _read_index(index), ()
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    if not classes:
        return [(file, None) for file in _pictures(path)], ()
    labelled: list[tuple[Path, int | None]] = [
        (file, label) for label, folder in enumerate(classes) for file in _pictures(folder)
    ]
    return labelled, tuple(folder.name for folder in classes)


def _read_index(index: Path) -> list[tuple[Path, int | None]]:
    try:
        rows = list(csv.DictReader(io.StringIO(index.read_text("utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{index} cannot be read: {e}") from e
    entries: list[tuple[Path, int | None]] = []
    folder = index.parent.resolve()
    for line, row in enumerate(rows, start=2):
        name, label = row.get("file"), row.get("label")
        if not name or label is None or not label.strip().isdigit():
            raise DataError(
                f"{index}, line {line}: expected a file and a whole number, found {row}",
                hint="its first line must be file,label",
            )
        file = index.parent / name
        if not file.resolve().is_relative_to(folder):
            raise DataError(f"{index}, line {line}: {name} lies outside the folder")
        entries.append((file, int(label)))
    return entries


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)


def _read_picture(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file} has more than {MAX_FILE_BYTES} bytes")
        return file.read_bytes()
    except OSError as e:
        raise DataError(f"picture {file} cannot be read: {e.strerror}") from e
