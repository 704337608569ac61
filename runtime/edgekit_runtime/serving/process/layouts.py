"""Layouts: what tensors lie in the arena, said once and called by a number from then on.

Each end numbers the layouts that it names itself, inputs in the parent and outputs in the child. A
model of many shapes has many layouts: the oldest number is used again, and both ends count alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.serving import data
from edgekit_runtime.serving.process.arena import aligned

NUMBERS = 256
# The dtype of BYTES.
TEXTS = "|O"

# Name, dtype as numpy writes it, shape.
Tensor = tuple[str, str, tuple[int, ...]]
Layout = tuple[Tensor, ...]
# What lies there: an array's values, or a BYTES tensor as it is on the wire.
Content = NDArray[Any] | bytes | memoryview


class Numbered:
    """The end that names layouts."""

    def __init__(self) -> None:
        # In the order of their numbers, which go round: the first is the oldest.
        self._numbers: dict[Layout, int] = {}
        self._next = 0

    def known(self, layout: Layout) -> int | None:
        """The number that the other end knows the layout by."""
        return self._numbers.get(layout)

    def number(self, layout: Layout) -> tuple[int, Layout | None]:
        """The layout's number, and the layout itself where the other end does not know it yet."""
        known = self.known(layout)
        if known is not None:
            return known, None
        number = self._next
        if len(self._numbers) == NUMBERS:
            del self._numbers[next(iter(self._numbers))]
        self._numbers[layout] = number
        self._next = (number + 1) % NUMBERS
        return number, layout


class Told:
    """The end that is told: what each number means."""

    def __init__(self) -> None:
        self._frames: dict[int, Frame] = {}

    def frame(self, number: int, fresh: Layout | None) -> Frame:
        """What this number means, from now on `fresh` where that is given."""
        if fresh is not None:
            self._frames[number] = Frame(fresh)
        return self._frames[number]


class Frame:
    """A layout, ready to place and to read tensors by."""

    def __init__(self, layout: Layout) -> None:
        self._tensors = [(name, np.dtype(dtype), shape) for name, dtype, shape in layout]
        self._sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in self._tensors]
        self._places = placed(self._sizes)

    def places(self, text_bytes: Sequence[int]) -> tuple[list[int], int]:
        """Where each tensor lies when they follow each other from 0, and where the last ends."""
        if not text_bytes:
            return self._places
        texts = iter(text_bytes)
        return placed(
            next(texts) if dtype.hasobject else size
            for (_, dtype, _), size in zip(self._tensors, self._sizes, strict=True)
        )

    def read(
        self, memory: memoryview, starts: Sequence[int], text_bytes: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        """The tensors by name: views of `memory`; BYTES are copied."""
        if text_bytes:
            return self._with_texts(memory, starts, text_bytes)
        return {
            name: np.ndarray(shape, dtype, memory, start)
            for (name, dtype, shape), start in zip(self._tensors, starts, strict=True)
        }

    def _with_texts(
        self, memory: memoryview, starts: Sequence[int], text_bytes: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        sizes, found = iter(text_bytes), {}
        for (name, dtype, shape), start in zip(self._tensors, starts, strict=True):
            if dtype.hasobject:
                raw = memory[start : start + next(sizes)]
                found[name] = data.from_strings(raw, shape, name=name)
            else:
                found[name] = np.ndarray(shape, dtype, memory, start)
        return found


def content(array: NDArray[Any]) -> Content:
    """What of an array lies in the arena."""
    return data.to_binary(array) if array.dtype.hasobject else array


def size_of(item: Content) -> int:
    """Its length there, in bytes."""
    return len(item) if isinstance(item, bytes) else item.nbytes


def write(memory: memoryview, start: int, item: Content) -> None:
    """Put it there."""
    if isinstance(item, np.ndarray):
        np.copyto(np.ndarray(item.shape, item.dtype, memory, start), item)
    else:
        memory[start : start + len(item)] = item


def placed(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where tensors of these sizes lie one after the other, from 0, and where the last ends."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += aligned(size)
    return starts, end
