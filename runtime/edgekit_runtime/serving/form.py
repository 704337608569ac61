"""Form: what an inference request says, checked against the model that it asks; plain data.

`offer` makes it of the request's JSON, `v2` reads the tensors that it describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.manifest import Datatype
from edgekit_runtime.serving.memo import Memo


class Stretch(msgspec.Struct, frozen=True):
    """A part of a registered region of shared memory."""

    region: str
    offset: int
    size_bytes: int


class Slot(msgspec.Struct, frozen=True):
    """Where a binary input lies, relative to the end of the JSON."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class Shared(msgspec.Struct, frozen=True):
    """Where an input lies in shared memory."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    place: Stretch


class Wanted(msgspec.Struct, frozen=True):
    """An output that the caller asked for.

    Attributes:
        binary: it follows the JSON of the answer.
        place: it is put into shared memory instead.
        classes: above 0, so many best classes are told instead of the values.
        labels: names of the classes; empty where there are none.
    """

    name: str
    datatype: Datatype
    binary: bool
    place: Stretch | None = None
    classes: int = 0
    labels: tuple[str, ...] = ()


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a request, checked against a model.

    Attributes:
        values: inputs whose data stood in the JSON.
        slots: inputs that follow as binary data, `binary_bytes` in all.
        shared: inputs that lie in shared memory, `shared_bytes` in all.
        timeout_us: time that the caller gives, from the last byte received.
        priority: 1 is highest, 0 stands for the default.
        variant: pinned by the caller.
        cascade: confidence from which on a small variant's answer is good enough, 0 to 1.
        rows: samples on axis 0 of every input, 0 where they differ or an input has no axes.
        shapes: of all inputs without axis 0, equal for requests that may run together.
        pictures: the input that came as pictures, for the model's pipeline to read; `rows` then
            counts pictures, and what the pipeline makes of them decides what may run together.
        finishes: outputs that the pipeline makes of the model's are asked for.
    """

    id: str
    values: Mapping[str, NDArray[Any]]
    slots: tuple[Slot, ...]
    binary_bytes: int
    shared: tuple[Shared, ...]
    shared_bytes: int
    outputs: tuple[Wanted, ...]
    timeout_us: int | None
    priority: int
    variant: str | None
    cascade: float | None
    rows: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    pictures: str | None
    finishes: bool

    @property
    def uses_regions(self) -> bool:
        """Whether an input or an output lies in shared memory."""
        return bool(self.shared) or any(wanted.place is not None for wanted in self.outputs)


class Prepared:
    """A form, and the beginnings of answers to it, by the shapes of its outputs.

    Attributes:
        is_plain: all tensors are binary or in shared memory, of a fixed size, and there is no id,
            so that the same JSON comes again and its answers differ only in their data.
        uses_regions: some tensor lies in shared memory.
    """

    __slots__ = ("answers", "form", "is_plain", "uses_regions")

    def __init__(self, checked: Form, *, is_plain: bool) -> None:
        self.form = checked
        self.is_plain = is_plain
        self.uses_regions = checked.uses_regions
        self.answers: Memo[tuple[bytes, bytes]] = Memo()
