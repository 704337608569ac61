"""Whole inputs: graphs for one sample, and samples on their way into a tool and back.

Accelerators compile for fixed shapes, and simulators are other processes: a source whose batch is
open is fixed to one sample, samples travel as whole inputs, and what comes back stands on axis 0
again, as `edgekit_runtime.engines.batches` says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.manifest import TensorSpec
from edgekit_converters.normalise import fixed
from edgekit_converters.targets import Job
from edgekit_converters.toolchains.driving import Limits, drive
from edgekit_runtime.engines.batches import SampleArrays, count_samples, iter_batches

# Of samples, in one process of a simulator.
_PROCESS_BYTES = 256 << 20


def single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for one sample; the model itself where no input leaves its batch open."""
    shapes = dict(_open_batches(model))
    if not shapes:
        return model
    found = fixed(model, shapes)
    del found.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(found)


def write_feeds(
    path: Path, specs: Sequence[TensorSpec], feeds: Iterable[Mapping[str, NDArray[Any]]]
) -> None:
    """Write whole inputs: `.npz`, with `i0`, `i1`, … in the order of `specs`."""
    taken = list(feeds)
    columns = {f"i{i}": np.stack([f[spec.name] for f in taken]) for i, spec in enumerate(specs)}
    np.savez(path, allow_pickle=False, **columns)


def answers_in(
    toolchain: str,
    request: Mapping[str, Any],
    inputs: SampleArrays,
    job: Job,
    *,
    driver: str | Path,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> dict[str, NDArray[Any]]:
    """Outputs for samples (axis 0 counts them), from a driver's task `run`.

    However many samples there are, a process holds no more than a part of them.

    Args:
        request: what the driver wants beside `task`, `names`, `samples`, `tensors` and `outputs`.
        limits: of one process.

    Raises:
        BuildError: of `drive`.
    """
    sample_bytes = sum(prod(array.shape[1:]) * array.dtype.itemsize for array in inputs.values())
    size = max(_PROCESS_BYTES // max(sample_bytes, 1), 1)
    parts = []
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=f"{toolchain}-samples-") as own:
        given, taken = Path(own, "in.npz").absolute(), Path(own, "out.npz").absolute()
        asked = {
            **request,
            "task": "run",
            "names": [spec.name for spec in job.inputs],
            "samples": str(given),
            "tensors": [spec.name for spec in job.outputs],
            "outputs": str(taken),
        }
        for start in range(0, count_samples(job.inputs, inputs), size):
            some = {name: array[start : start + size] for name, array in inputs.items()}
            write_feeds(given, job.inputs, iter_batches(job.inputs, some, size=1))
            drive(
                toolchain, asked, driver=driver, folder=job.folder, produces=[taken], limits=limits
            )
            parts.append(_read(taken, job.outputs))
    return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in job.outputs}


def _read(path: Path, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
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
