"""Channels: which positions of which tensors stand or fall together when channels are removed.

Every output channel of a convolution or linear layer gets an id. Ids travel through the graph
with the axis that they number: kept by elementwise operators and pooling, repeated where maps are
flattened, put side by side by a concatenation, made one where tensors are added. Each place in a
weight that an id numbers is recorded, so that removing a channel is nothing but slicing. The rule
that is kept: where an operator is not understood, the ids that reach it are frozen, and so are
those that reach an output of the model; a frozen channel is never removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit_converters.macs import Shape, shapes_of
from edgekit_converters.passes.weights import uses_of

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """The one axis of a tensor whose positions are channels, and their ids [size of the axis]."""

    axis: int
    ids: Ids


@dataclass(frozen=True)
class Place:
    """An axis of an initialiser that shrinks with its channels.

    Attributes:
        node: the name of the only node that reads the initialiser.
        entering: whether the axis counts what the node reads, not what it makes.
    """

    tensor: str
    axis: int
    ids: Ids
    node: str
    entering: bool = False


@dataclass(frozen=True)
class Size:
    """An entry of an initialiser (the shape a Reshape takes) that is the number of channels."""

    tensor: str
    position: int
    ids: Ids


@dataclass(frozen=True)
class Consumer:
    """A convolution of one group or a linear layer that reads channels and mixes all of them.

    Attributes:
        node: its name.
        ids: of the channels that it reads, in the order of its weight.
    """

    node: str
    source: str
    output: str
    weight: str
    ids: Ids


class Channels:
    """Ids of a graph's channels, as rules record them; see `rules.trace`.

    Args:
        model: in normal form; tensors of unknown shape end what is known of channels.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants: Mapping[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in model.graph.initializer
        }
        self.shapes: Mapping[str, Shape] = shapes_of(model)
        self.places: list[Place] = []
        self.sizes: list[Size] = []
        self.consumers: list[Consumer] = []
        self.producers: list[Ids] = []
        self.depthwise: list[tuple[str, Ids]] = []
        self.streams: list[Ids] = []
        self._uses = uses_of(model)
        self._labels: dict[str, Labels] = {}
        self._parents: list[int] = []
        self._frozen: set[int] = set()
        self._roots: Ids = np.zeros(0, np.int64)

    def labels(self, tensor: str) -> Labels | None:
        """The channel axis of a tensor; None where it has none that is known."""
        return self._labels.get(tensor)

    def owned(self, tensor: str) -> onnx.TensorProto | None:
        """An initialiser that is read once in the whole model, so that it may be sliced."""
        return self.constants.get(tensor) if self._uses[tensor] == 1 else None

    def fresh(self, count: int) -> Ids:
        """New ids, of the channels that a layer makes."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        ids = np.arange(first, first + count, dtype=np.int64)
        self.producers.append(ids)
        return ids

    def label(self, tensor: str, axis: int, ids: Ids) -> None:
        """Say which axis of a tensor is numbered by which channels."""
        self._labels[tensor] = Labels(axis, ids)

    def join(self, one: Ids, other: Ids) -> None:
        """Channels of equal position go together or not at all."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parents[high] = low

    def freeze(self, tensors: Iterable[str]) -> None:
        """Keep every channel of these tensors."""
        for name in tensors:
            labels = self._labels.get(name)
            if labels is not None:
                self._frozen.update(labels.ids.tolist())

    def settle(self) -> None:
        """Everything is recorded: from now on roots are known."""
        self._roots = np.array([self._root(i) for i in range(len(self._parents))], np.int64)

    def roots(self, ids: Ids) -> Ids:
        """For each id the smallest one of those that go together with it."""
        return self._roots[ids]

    def frozen_roots(self) -> set[int]:
        """Roots of what must stay."""
        return set(self._roots[sorted(self._frozen)].tolist())

    def kept(self, removed: Sequence[int]) -> NDArray[np.bool_]:
        """By id whether it stays, given the roots that are removed."""
        gone = np.zeros(len(self._roots), np.bool_)
        gone[list(removed)] = True
        return ~gone[self._roots]

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i
