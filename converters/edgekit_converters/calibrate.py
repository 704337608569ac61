"""Calibrate: the range of values that each tensor of a model takes on calibration samples.

The model is run once with the extremes of every float tensor as extra outputs; only where a method
needs more than extremes is it run again, now counting values in fixed bins (`ranges`). Samples are
read and run one by one, and never more tensors are asked for at once than fit a budget, so memory
is bounded whatever the model and however many samples there are. The same samples give the same
ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekit.manifest import TensorSpec
from edgekit_converters.inspect import shapes_of
from edgekit_converters.normalise import serialise
from edgekit_converters.ranges import (
    BINS,
    Histogram,
    Method,
    Range,
    counts_of,
    entropy_range,
    mse_range,
    percentile_range,
    with_zero,
)
from edgekit_runtime.engines import ENGINES, Tensors
from edgekit_runtime.engines.batches import SampleArrays, iter_batches

if TYPE_CHECKING:
    from edgekit_converters.grids import Grids

MAX_SAMPLES = 64
KEPT_CALIBRATORS = 2
"""How many models' observations are kept: the one at hand, and what it was made from."""

_ACTIVATION_BUDGET_BYTES = 128 << 20
_UNKNOWN_BYTES = 8 << 20
_MIN, _MAX = ".edgekit.min", ".edgekit.max"


class Calibration:
    """The calibration samples of a build, and what was observed of each model that ran on them.

    Args:
        inputs: specs of the model's inputs.
        arrays: samples by input, axis 0 counting them; at most `MAX_SAMPLES`, evenly spread, are
            used. Only slices of axis 0 are taken, so they may be read from a file on demand.
        scratch: a folder for temporary models.
        grids: of an earlier bundle, for passes that can keep them; None to choose all anew.
    """

    def __init__(
        self,
        *,
        inputs: tuple[TensorSpec, ...],
        arrays: SampleArrays,
        scratch: Path,
        grids: Grids | None = None,
    ) -> None:
        self.grids = grids
        self._inputs = inputs
        self._arrays = arrays
        self._scratch = scratch
        self._calibrators: dict[str, Calibrator] = {}

    def of(self, model: onnx.ModelProto) -> Calibrator:
        """Ranges of a model's tensors, one calibrator for equal models.

        Only the last `KEPT_CALIBRATORS` are kept; an older model is observed again.
        """
        digest = _digest(model)
        calibrator = self._calibrators.pop(digest, None) or Calibrator(
            model, inputs=self._inputs, arrays=self._arrays, scratch=self._scratch
        )
        self._calibrators[digest] = calibrator
        while len(self._calibrators) > KEPT_CALIBRATORS:
            del self._calibrators[next(iter(self._calibrators))]
        return calibrator

    def activations(
        self, model: onnx.ModelProto, names: Iterable[str]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Float tensors of a model by name, sample after sample (batch 1), for one forward pass.

        Args:
            names: inputs, outputs or tensors inside the model.

        Raises:
            EngineError: the model cannot be run.
        """
        return self.of(model).activations(names)


class Calibrator:
    """Ranges of one model's float tensors on given samples; what was observed is kept.

    Args:
        model: with inferred shapes; it is not changed, and must not be while this lives.
        inputs: specs of the model's inputs.
        arrays: calibration samples by input; see `Calibration`.
        scratch: a folder for temporary models.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        inputs: tuple[TensorSpec, ...],
        arrays: SampleArrays,
        scratch: Path,
    ) -> None:
        count = len(next(iter(arrays.values())))
        chosen = np.linspace(0, count - 1, min(count, MAX_SAMPLES)).round()
        self._chosen = [int(position) for position in chosen]
        self._arrays = arrays
        self._inputs = inputs
        self._model = model
        self._scratch = scratch
        self._extremes: dict[str, Range] | None = None
        self._histograms: dict[str, Histogram] | None = None
        self._means: dict[tuple[str, int], NDArray[np.float64]] = {}
        self._ranges: dict[tuple[Method, float], dict[str, Range]] = {}

    def ranges(self, method: Method, *, percentile: float = 99.99) -> dict[str, Range]:
        """Lowest and highest value to represent, by tensor.

        A tensor that took an infinite value (a mask of attention, say), or none that is a number,
        has no range; values that are no number are passed over.

        - `minmax`: the extremes that were seen.
        - `percentile`: see `ranges.percentile_range`.
        - `mse`: see `ranges.mse_range`.
        - `entropy`: see `ranges.entropy_range`.

        Raises:
            EngineError: the model cannot be run.
        """
        key = (method, percentile if method == "percentile" else 0.0)
        if key not in self._ranges:
            self._ranges[key] = self._find_ranges(method, percentile)
        return dict(self._ranges[key])

    def activations(self, names: Iterable[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """Tensors by name, sample after sample; see `Calibration.activations`."""
        wanted = set(names)
        given = wanted & {value.name for value in self._model.graph.input}
        if wanted == given:
            yield from ({name: feed[name] for name in wanted} for feed in self._feeds())
            return
        for feed, outputs in self._run(_with_tensors(self._model, wanted - given)):
            yield {name: feed[name] if name in given else outputs[name] for name in wanted}

    def means(self, axes: Mapping[str, int]) -> dict[str, NDArray[np.float64]]:
        """Mean of each channel, by tensor, over samples and all other axes.

        Args:
            axes: by tensor, the axis that counts its channels.

        Raises:
            EngineError: the model cannot be run.
        """
        missing = sorted(name for name in axes if (name, axes[name]) not in self._means)
        totals: dict[str, NDArray[np.float64]] = {}
        for names in _portions(self._model, missing):
            for tensors in self.activations(names):
                for name, values in tensors.items():
                    others = tuple(i for i in range(values.ndim) if i != axes[name])
                    mean = values.mean(axis=others, dtype=np.float64)
                    totals[name] = totals.get(name, 0.0) + mean
        for name, total in totals.items():
            self._means[name, axes[name]] = total / len(self._chosen)
        known = ((name, axis) for name, axis in axes.items() if (name, axis) in self._means)
        return {name: self._means[name, axis] for name, axis in known}

    def _find_ranges(self, method: Method, percentile: float) -> dict[str, Range]:
        extremes = self._observe_extremes()
        if method == "minmax":
            return extremes
        found = {}
        for name, counts in self._observe_histograms().items():
            span = with_zero(extremes[name])
            if method == "percentile":
                found[name] = percentile_range(counts, span, percentile)
            elif method == "mse":
                found[name] = mse_range(counts, span)
            else:
                found[name] = entropy_range(counts, span)
        return found

    def _observe_extremes(self) -> dict[str, Range]:
        if self._extremes is None:
            lows: dict[str, float] = {}
            highs: dict[str, float] = {}
            # Each tensor lives until it was reduced, so those of one run must fit the budget too.
            for names in _portions(self._model, float_tensors(self._model)):
                for _, outputs in self._run(_with_extremes(self._model, names)):
                    for name in names:
                        low, high = outputs[f"{name}{_MIN}"], outputs[f"{name}{_MAX}"]
                        lows[name] = float(np.fmin(lows.get(name, np.inf), low))
                        highs[name] = float(np.fmax(highs.get(name, -np.inf), high))
            found = {name: (lows[name], highs[name]) for name in lows}
            self._extremes = {name: seen for name, seen in found.items() if np.isfinite(seen).all()}
        return self._extremes

    def _observe_histograms(self) -> dict[str, Histogram]:
        if self._histograms is None:
            extremes = self._observe_extremes()
            counts = {name: np.zeros(BINS, np.int64) for name in extremes}
            for names in _portions(self._model, tuple(counts)):
                for tensors in self.activations(names):
                    for name, values in tensors.items():
                        counts[name] += counts_of(values, with_zero(extremes[name]))
            self._histograms = counts
        return self._histograms

    def _run(self, model: onnx.ModelProto) -> Iterator[tuple[Tensors, Tensors]]:
        path = self._scratch / "calibrate.onnx"
        path.write_bytes(serialise(model))
        del model
        session = ENGINES.get("onnxruntime").open(path, options={})
        try:
            for feed in self._feeds():
                yield feed, session.run(feed)
        finally:
            session.close()
            path.unlink()

    def _feeds(self) -> Iterator[Tensors]:
        for i in self._chosen:
            sample = {name: array[i : i + 1] for name, array in self._arrays.items()}
            yield from iter_batches(self._inputs, sample, size=1)


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Float32 activations whose type is known: inputs, then results of nodes in running order."""
    graph = model.graph
    known = (*graph.input, *graph.value_info, *graph.output)
    floats = {v.name for v in known if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    inputs = [value.name for value in graph.input]
    results = [name for n in graph.node if n.op_type != "Constant" for name in n.output]
    return [name for name in (*inputs, *results) if name in floats]


def _portions(model: onnx.ModelProto, names: Sequence[str]) -> list[list[str]]:
    """Tensors in groups whose bytes, for one sample, fit the budget; one alone may be larger."""
    shapes = shapes_of(model)
    portions: list[list[str]] = [[]]
    total = 0
    for name in names:
        size_bytes = 4 * prod(shapes[name]) if name in shapes else _UNKNOWN_BYTES
        if portions[-1] and total + size_bytes > _ACTIVATION_BUDGET_BYTES:
            portions.append([])
            total = 0
        portions[-1].append(name)
        total += size_bytes
    return portions if portions[0] else []


def _with_extremes(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The part of a model that makes these tensors, with their extremes as its outputs."""
    part = _part(model, names)
    for name in names:
        for operator, suffix in (("ReduceMin", _MIN), ("ReduceMax", _MAX)):
            output = f"{name}{suffix}"
            node = helper.make_node(operator, [name], [output], f"{output}.node", keepdims=0)
            part.graph.node.append(node)
            part.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return part


def _with_tensors(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The part of a model that makes these tensors, with them as its outputs."""
    part = _part(model, names)
    for name in sorted(names):
        part.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return part


def _part(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy without outputs that ends with the last node that makes one of these tensors."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    makers = [i for i, node in enumerate(model.graph.node) if set(node.output) & set(names)]
    del part.graph.node[max(makers, default=-1) + 1 :]
    del part.graph.output[:]
    return part


def _digest(model: onnx.ModelProto) -> str:
    """Of all that decides what a model computes, part by part: its weights are not copied whole."""
    graph = model.graph
    digest = hashlib.sha256()
    for part in (
        *model.opset_import,
        *model.functions,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.node,
        *graph.initializer,
        *graph.sparse_initializer,
    ):
        raw = part.SerializeToString(deterministic=True)
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
