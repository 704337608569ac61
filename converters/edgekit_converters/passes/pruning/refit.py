"""Refit: weights that make up for channels that are gone, by least squares on calibration samples.

Each layer that read them is fitted for itself: what it keeps stands in best for all that it read in
the whole model. Fitting layer after layer to what the pruned ones before it hand on (He et al.,
"Channel Pruning for Accelerating Very Deep Neural Networks", 2017) was measured too, and left out:
on EfficientNet-Lite0 with 64 samples of 5 photographs it took agreement from .955 to .960 at one
share and from .950 to .940 at the next, at a hundred times the cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit_converters.passes.pruning.channels import Channels
from edgekit_converters.passes.pruning.elimination import fitted
from edgekit_converters.passes.pruning.layers import Layer, store, stored
from edgekit_converters.passes.pruning.moments import Moments
from edgekit_converters.passes.pruning.surgery import without


def pruned(
    model: onnx.ModelProto,
    channels: Channels,
    removed: Sequence[int],
    *,
    layers: Mapping[str, Layer],
    moments: Mapping[str, Moments],
) -> onnx.ModelProto:
    """The model without some units, each layer that read them fitted to make up for it.

    Args:
        removed: units (root ids) that are not frozen.
        layers, moments: by node, of every layer that reads one of them.
    """
    smaller = without(model, channels, removed)
    kept = channels.kept(removed)
    for name in _losing(channels, removed, layers):
        layer, seen = layers[name], moments[name]
        features = kept[layer.consumer.ids].repeat(layer.taps)
        matrix, bias = stored(model, layer)
        mean = seen.mean(centred=layer.biased)
        best = fitted(matrix, seen.covariance(centred=layer.biased), features)
        bias += matrix @ mean - best @ mean[features]
        outputs = _kept_outputs(channels, removed, layer)
        store(smaller, layer, best[outputs], bias[outputs] if layer.biased else None)
    return smaller


def _losing(channels: Channels, removed: Sequence[int], layers: Mapping[str, Layer]) -> list[str]:
    """Names of the layers that read removed channels, in the order of the model's nodes."""
    kept = channels.kept(removed)
    return [
        consumer.node
        for consumer in channels.consumers
        if consumer.node in layers and not kept[consumer.ids].all()
    ]


def _kept_outputs(channels: Channels, removed: Sequence[int], layer: Layer) -> NDArray[np.bool_]:
    made = channels.labels(layer.consumer.output)
    assert made is not None  # a consumer is a producer, too
    return channels.kept(removed)[made.ids]
