"""Plan: which groups of a model can lose channels, and how many at a time. No data is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import onnx

from edgekit_converters.passes.pruning.channels import Channels
from edgekit_converters.passes.pruning.groups import Group, find, node_work
from edgekit_converters.passes.pruning.layers import Layer, layer_of
from edgekit_converters.passes.pruning.rules import trace

# Of a layer's channels: beyond that another architecture would serve better.
_MOST = 0.5
_MOST_FEATURES = 2304
_MOMENTS_BUDGET_BYTES = 192 << 20


@dataclass(frozen=True)
class Plan:
    """What could be removed from a model.

    Attributes:
        groups: with the number of units that go in each turn.
        layers: by node, of every layer that reads channels of a group.
        work: time of the whole model, in the unit of `Group.unit_work`.
    """

    channels: Channels
    groups: tuple[tuple[Group, tuple[int, ...]], ...]
    layers: Mapping[str, Layer]
    work: float

    @property
    def largest_share(self) -> float:
        """What all turns of all groups save, as a share of the model's time; an estimate."""
        saved = sum(sum(turns) * group.unit_work for group, turns in self.groups)
        return saved / self.work if self.work else 0.0


def plan(model: onnx.ModelProto, multiple: int) -> Plan:
    """Look at a model in normal form.

    Groups whose readers have more features than there is memory for their moments are left out,
    the largest first.

    Args:
        multiple: of channels that a layer keeps.
    """
    channels = trace(model)
    possible = [
        (group, counts)
        for group in find(channels, model)
        if (counts := turns(group.size, len(group.units), multiple))
    ]
    layers = {
        reader.consumer.node: layer_of(model, reader.consumer)
        for group, _ in possible
        for reader in group.readers
    }
    bounded: dict[str, Layer] = {}
    budget_bytes = _MOMENTS_BUDGET_BYTES
    for name, layer in sorted(layers.items(), key=lambda item: item[1].features):
        # Of two parts of the samples and of all, in single precision.
        budget_bytes -= 3 * 4 * layer.features**2
        if layer.features <= _MOST_FEATURES and budget_bytes >= 0:
            bounded[name] = layer
    return Plan(
        channels=channels,
        groups=tuple(
            (group, counts)
            for group, counts in possible
            if all(reader.consumer.node in bounded for reader in group.readers)
        ),
        layers=bounded,
        work=sum(macs + outputs for macs, outputs in node_work(model).values()),
    )


def turns(size: int, units: int, multiple: int) -> tuple[int, ...]:
    """How many units go in each turn, so that what stays is always a multiple.

    Args:
        size: channels that the layer has.
        units: how many of them may go.
    """
    least = max(multiple, ceil(size * (1 - _MOST)))
    counts = []
    count = size % multiple or multiple
    while units >= count and size - count >= least:
        counts.append(count)
        units, size, count = units - count, size - count, multiple
    return tuple(counts)
