"""Data: samples that calibrate and prove an artefact, and the parts they are split into.

Axis 0 of every array counts samples, as `edgekit_runtime.engines.batches` says; `dataset.load`
leaves them in their file, to be read as they are needed. Golden, calibration, selection and
evaluation parts never share a sample, nor a group: crops of one photograph never stand on both
sides. The same data and split give the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.manifest import TensorSpec
from edgekit.recipe import Split
from edgekit_converters.rows import Indices, take
from edgekit_runtime.engines.batches import SampleArray
from edgekit_runtime.engines.tensors import DTYPES, has_batch_axis

MIN_EVALUATION = 20
"""Samples below which a figure of accuracy proves nothing."""
MIN_EVALUATION_GROUPS = 5
"""Groups that evaluation keeps before the search gets a part of its own."""

_MAX_SYNTHETIC_BYTES = 1 << 30


@dataclass(frozen=True)
class Samples:
    """Samples of a model's inputs.

    Attributes:
        arrays: input name to samples, axis 0 counting them; in memory or in a file. Batches are
            read by `arrays[name][start:stop]`.
        labels: the truth, axis 0 counting samples; None where nobody said. Classes int64 [n],
            targets [n, k], masks [n, h, w], boxes [n, m, 5], sequences [n, t].
        groups: int64 [n], samples with one number belong together.
        names: class names by label, where the data names its classes.
        files: the picture that each sample was made of; empty where the data holds inputs.
    """

    arrays: Mapping[str, SampleArray]
    labels: NDArray[Any] | None
    groups: NDArray[np.int64]
    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def count(self) -> int:
        return len(self.groups)

    def take(self, which: Indices) -> Samples:
        """The samples at these positions; what lies in a file is not read yet."""
        return Samples(
            arrays={name: take(array, which) for name, array in self.arrays.items()},
            labels=None if self.labels is None else self.labels[which],
            groups=self.groups[which],
            names=self.names,
            files=tuple(self.files[int(i)] for i in which) if self.files else (),
        )

    def in_memory(self) -> dict[str, NDArray[Any]]:
        """All inputs read, by name: for few samples."""
        return {name: np.asarray(array) for name, array in self.arrays.items()}


@dataclass(frozen=True)
class Parts:
    """The uses of data. All but `golden` are None without given data.

    Attributes:
        golden: what a device must reproduce.
        calibration: what passes look at.
        selection: what the search chooses by. Where the data is too small for a part of its own,
            these are the calibration samples, and a note says so.
        evaluation: what is reported. Nothing was chosen by these samples.
    """

    golden: Samples
    calibration: Samples | None = None
    selection: Samples | None = None
    evaluation: Samples | None = None
    origin: Literal["given", "synthetic"] = "given"
    notes: tuple[str, ...] = field(default=())

    @property
    def enough(self) -> bool:
        """Whether there is enough to judge an artefact by."""
        return self.evaluation is not None and self.evaluation.count >= MIN_EVALUATION


def split(samples: Samples, rule: Split) -> Parts:
    """Divide samples by whole groups.

    Groups are put in an order drawn from `rule.seed`. The first ones fill the golden part until it
    has `rule.golden` samples; what is left of the last of them is not used, as it would stand on
    two sides. The next ones fill calibration up to its share of all samples, then selection up to
    its own. The rest evaluates. Where that would be fewer than `MIN_EVALUATION` samples or
    `MIN_EVALUATION_GROUPS` groups, the search chooses on calibration samples.

    Raises:
        DataError: there are too few samples or groups for golden, calibration and evaluation.
    """
    names, sizes = np.unique(samples.groups, return_counts=True)
    if samples.count < rule.golden + 2 or len(names) < 3:
        raise DataError(
            f"{samples.count} samples in {len(names)} groups cannot be split into calibration,"
            f" golden ({rule.golden}) and evaluation",
            hint=f"give at least {rule.golden + 2} samples in 3 groups, or set split in the recipe",
        )
    order = np.random.default_rng(rule.seed).permutation(len(names))
    names, sizes = names[order], sizes[order]
    golden = int(np.searchsorted(np.cumsum(sizes), rule.golden) + 1)
    # Evaluation keeps one group at least, whatever the shares say.
    most = len(names) - golden - 1
    if most < 1:
        raise DataError(
            f"{len(names)} groups are too few for calibration, golden and evaluation",
            hint="give more groups, or fewer golden samples in the recipe's split",
        )
    share = round(rule.calibration * samples.count)
    calibration = golden + min(most, _groups_within(sizes[golden:], share))
    selection = calibration + _selection_groups(sizes[calibration:], rule, samples.count)

    def part(first: int, last: int) -> Samples:
        return samples.take(np.flatnonzero(np.isin(samples.groups, names[first:last])))

    evaluation = part(selection, len(names))
    notes = []
    if selection == calibration:
        notes.append("the search chose on calibration samples: too few for a part of its own")
    if evaluation.count < MIN_EVALUATION:
        notes.append(
            f"{evaluation.count} samples evaluate, fewer than {MIN_EVALUATION}: nothing is proven"
        )
    calibrates = part(golden, calibration)
    return Parts(
        golden=part(0, golden).take(np.arange(rule.golden)),
        calibration=calibrates,
        selection=calibrates if selection == calibration else part(calibration, selection),
        evaluation=evaluation,
        notes=tuple(notes),
    )


def bounded(samples: Samples, most: int) -> Samples:
    """At most `most` samples, evenly spread."""
    return samples if samples.count <= most else samples.take(spread(samples.count, most))


def spread(count: int, most: int) -> NDArray[np.intp]:
    """Positions of `most` of `count` samples, evenly spread."""
    return np.linspace(0, count - 1, most).round().astype(np.intp)


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


def _groups_within(sizes: NDArray[np.intp], samples: int) -> int:
    """How many of the first groups hold at most so many samples together; one at least."""
    return max(1, int(np.searchsorted(np.cumsum(sizes), samples, side="right")))


def _selection_groups(sizes: NDArray[np.intp], rule: Split, samples: int) -> int:
    """How many of the groups beyond calibration the search gets; 0 where evaluation needs all."""
    groups = _groups_within(sizes, round(rule.selection * samples))
    left = sizes[groups:]
    enough = len(left) >= MIN_EVALUATION_GROUPS and left.sum() >= MIN_EVALUATION
    return groups if enough and rule.selection > 0 else 0
