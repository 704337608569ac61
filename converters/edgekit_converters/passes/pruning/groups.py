"""Groups: channels that compete with each other to stay, and the layers that read them.

A unit is what goes at once: channels of one position in tensors that are added, or a channel with
all its pixels before a linear layer. A group holds the units of layers that share any of them. Only
what is removable for sure is in a group, and no channel of a sum that several layers write (the
stream of a residual network): on EfficientNet-Lite0 the fewest that can go from one stream, .01 to
.06 of the model's time, cost the outputs as much as .15 of it taken elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit_converters.macs import macs_by_node, shapes_of
from edgekit_converters.passes.pruning.channels import Channels, Consumer, Ids

# Time per output element and per MAC of a depthwise convolution, in units of a MAC of a dense one:
# fitted to onnxruntime's int8 kernels on x86 with VNNI over the layers of EfficientNet-Lite0.
_OUTPUT_WORK = 48.0
_DEPTHWISE_WORK = 12.0


@dataclass(frozen=True)
class Reader:
    """A consumer seen by one group.

    Attributes:
        positions: where in the consumer's input channels each unit sits, [units, k].
    """

    consumer: Consumer
    positions: NDArray[np.intp]


@dataclass(frozen=True)
class Group:
    """Units that may be removed.

    Attributes:
        name: of the layer that makes the first of them.
        units: root ids of the channels, ascending.
        size: how many channels the layer makes, those that must stay included.
        readers: every consumer that reads them.
        unit_work: time that one unit takes, in dense MACs; an estimate.
    """

    name: str
    units: Ids
    size: int
    readers: tuple[Reader, ...]
    unit_work: float


def find(channels: Channels, model: onnx.ModelProto) -> tuple[Group, ...]:
    """The groups of a model, in the order of its nodes."""
    frozen = channels.frozen_roots()
    for ids in channels.streams:
        frozen.update(channels.roots(ids).tolist())
    made = [(ids, set(channels.roots(ids).tolist())) for ids in channels.producers]
    taken: list[set[int]] = []
    for _, roots in made:
        joined = set(roots)
        apart = []
        for other in taken:
            if joined & other:
                joined |= other
            else:
                apart.append(other)
        taken = [*apart, joined]
    by_node = node_work(model)
    groups = []
    for roots in taken:
        units = np.array(sorted(roots - frozen), np.int64)
        readers = _readers(channels, units)
        if len(units) and readers:
            work = _unit_work(channels, by_node, units)
            groups.append(Group(_maker(channels, units), units, len(roots), readers, work))
    return tuple(sorted(groups, key=lambda group: int(group.units[0])))


def node_work(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """By node: the time of its MACs and that of its output elements, in dense MACs."""
    macs, _ = macs_by_node(model)
    shapes = shapes_of(model)
    work = {}
    for node in model.graph.node:
        if node.name in macs:
            grouped = any(a.name == "group" and a.i > 1 for a in node.attribute)
            each = _DEPTHWISE_WORK if grouped else 1.0
            outputs = float(np.prod(shapes[node.output[0]], dtype=np.int64))
            work[node.name] = (macs[node.name] * each, outputs * _OUTPUT_WORK)
    return work


def _readers(channels: Channels, units: Ids) -> tuple[Reader, ...]:
    """Who reads the units; empty where one of the consumers does not read them evenly."""
    readers = []
    for consumer in channels.consumers:
        roots = channels.roots(consumer.ids)
        order = np.argsort(roots, kind="stable")
        first = np.searchsorted(roots[order], units)
        counts = np.searchsorted(roots[order], units, side="right") - first
        if not counts.any():
            continue
        if (counts != counts[0]).any():
            return ()
        each = np.arange(counts[0])
        readers.append(Reader(consumer, order[first[:, np.newaxis] + each]))
    return tuple(readers)


def _unit_work(channels: Channels, by_node: Mapping[str, tuple[float, float]], units: Ids) -> float:
    total = 0.0
    for place in channels.places:
        # A bias shrinks with its weight, which counts already.
        if place.node not in by_node or len(channels.constants[place.tensor].dims) < 2:
            continue
        share = float(np.isin(channels.roots(place.ids), units).mean())
        macs, outputs = by_node[place.node]
        total += share * (macs if place.entering else macs + outputs)
    return total / max(len(units), 1)


def _maker(channels: Channels, units: Ids) -> str:
    return next(
        place.node
        for place in channels.places
        if not place.entering and np.isin(channels.roots(place.ids), units).any()
    )
