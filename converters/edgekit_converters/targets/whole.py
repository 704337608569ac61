"""Whole inputs: graphs for one sample, and samples on their way into a tool and back.

Accelerators compile for fixed shapes, and simulators are other processes: a source whose batch is
open is fixed to one sample, samples travel as whole inputs, and what comes back stands on axis 0
again, as `edgekit_runtime.engines.batches` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.manifest import TensorSpec
from edgekit_converters.normalise import fixed
from edgekit_runtime.engines.batches import SampleArrays, iter_batches


def single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for one sample; the model itself where no input leaves its batch open."""
    shapes = dict(_open_batches(model))
    if not shapes:
        return model
    found = fixed(model, shapes)
    del found.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(found)


def write_samples(path: Path, specs: Sequence[TensorSpec], samples: SampleArrays) -> None:
    """Write samples as whole inputs: `.npz`, with `i0`, `i1`, … in the order of `specs`."""
    write_feeds(path, specs, iter_batches(specs, samples, size=1))


def write_feeds(
    path: Path, specs: Sequence[TensorSpec], feeds: Iterable[Mapping[str, NDArray[Any]]]
) -> None:
    """The same, of inputs by name that are whole already."""
    taken = list(feeds)
    columns = {f"i{i}": np.stack([f[spec.name] for f in taken]) for i, spec in enumerate(specs)}
    np.savez(path, allow_pickle=False, **columns)


def read_outputs(path: Path, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Outputs by name, axis 0 counting samples, of a `.npz` with `o0`, `o1`, … by `specs`."""
    with np.load(path, allow_pickle=False) as found:
        return {spec.name: _by_sample(found[f"o{i}"]) for i, spec in enumerate(specs)}


def _by_sample(outputs: NDArray[Any]) -> NDArray[Any]:
    has_batch = outputs.ndim > 1 and outputs.shape[1] == 1
    return outputs[:, 0] if has_batch else outputs


def _open_batches(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].HasField("dim_value"):
            rest = (axis.dim_value if axis.HasField("dim_value") else -1 for axis in axes[1:])
            yield value.name, (1, *rest)
