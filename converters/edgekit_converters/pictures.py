"""Pictures: a folder of them as samples of a model's one input.

Each picture goes through the recipe's preprocess, as a device does it, and is written to a scratch
folder; memory holds one picture. Files come in the order of their names, so that equal folders
give equal samples.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.steps import PreStep
from edgekit_converters.rows import Rows, keep
from edgekit_runtime.pipeline import MAX_FILE_BYTES, preprocess

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
_INDEX = "labels.csv"


@dataclass(frozen=True)
class Pictures:
    """What a folder holds.

    Attributes:
        inputs: [n, h, w, c], or [n, c, h, w] after a layout step to NCHW, in the datatype that the
            steps give.
        labels: int64 [n]; None where a folder says nothing of them.
        names: class names by label, where folders name them.
        files: each picture's own.
    """

    inputs: Rows
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Entry:
    file: Path
    label: int | None = None


def read(folder: Path, steps: Sequence[PreStep], *, scratch: Path) -> Pictures:
    """All pictures of a folder, preprocessed.

    Args:
        folder: with `labels.csv` (`file,label`), or with one folder per class, or just pictures.
        steps: turn a picture into an input.
        scratch: a folder on the disk for what they become.

    Raises:
        DataError: there is none, one cannot be read, or two become inputs of different shapes.
        StorageError: the scratch folder is full or cannot be written.
    """
    entries, names = _listing(folder)
    if not entries:
        raise DataError(
            f"{folder} holds no pictures", hint=f"known: {', '.join(sorted(_SUFFIXES))}"
        )
    first = _input(entries[0], steps)
    inputs = _inputs(entries, steps, first.shape)
    file = keep((array.reshape(-1).data.cast("B") for array in inputs), scratch=scratch)
    labels = [entry.label for entry in entries if entry.label is not None]
    return Pictures(
        inputs=Rows(file, offset=0, shape=(len(entries), *first.shape), dtype=first.dtype),
        labels=np.array(labels, np.int64) if len(labels) == len(entries) else None,
        names=names,
        files=tuple(entry.file for entry in entries),
    )


def _inputs(
    entries: Sequence[_Entry], steps: Sequence[PreStep], shape: tuple[int, ...]
) -> Iterator[NDArray[Any]]:
    for entry in entries:
        array = _input(entry, steps)
        if array.shape != shape:
            raise DataError(
                f"{entry.file} becomes {list(array.shape)}, others {list(shape)}",
                hint="resize to one width and height in the recipe's preprocess",
            )
        yield array


def _input(entry: _Entry, steps: Sequence[PreStep]) -> NDArray[Any]:
    return preprocess(steps, _bytes_of(entry.file), what=str(entry.file))


def _listing(folder: Path) -> tuple[list[_Entry], tuple[str, ...]]:
    """Each picture with its label, and the names of classes where folders name them."""
    index = folder / _INDEX
    if index.is_file():
        return _read_index(index), ()
    classes = sorted(inside for inside in folder.iterdir() if inside.is_dir())
    if not classes:
        return [_Entry(file) for file in _pictures(folder)], ()
    labelled = [
        _Entry(file, label) for label, inside in enumerate(classes) for file in _pictures(inside)
    ]
    return labelled, tuple(inside.name for inside in classes)


def _read_index(index: Path) -> list[_Entry]:
    try:
        rows = list(csv.DictReader(io.StringIO(index.read_text("utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{index} cannot be read: {e}") from e
    entries = []
    folder = index.parent.resolve()
    for line, row in enumerate(rows, start=2):
        name, label = row.get("file"), row.get("label")
        if not name or label is None or not label.strip().isdecimal():
            raise DataError(
                f"{index}, line {line}: expected a file and a whole number, found {row}",
                hint="its first line must be file,label",
            )
        file = index.parent / name
        if not file.resolve().is_relative_to(folder):
            raise DataError(f"{index}, line {line}: {name} lies outside the folder")
        entries.append(_Entry(file, int(label)))
    return entries


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)


def _bytes_of(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file} has more than {MAX_FILE_BYTES} bytes")
        return file.read_bytes()
    except OSError as e:
        raise DataError(f"picture {file} cannot be read: {e.strerror}") from e
