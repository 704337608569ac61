"""Calibrate: the range of values that each tensor of a model takes on calibration samples.

The model is run once with the extremes of every float tensor as extra outputs; only where a method
needs more than extremes is it run again, now counting values in fixed bins. Samples are run one by
one, so memory is bounded by one sample's activations. The same samples give the same ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekit.manifest import TensorSpec
from edgekit_converters.normalise import serialise
from edgekit_runtime.engines import ENGINES
from edgekit_runtime.engines.batches import iter_batches

Method = Literal["minmax", "percentile", "mse"]
Range = tuple[float, float]
Histogram = NDArray[np.int64]

MAX_SAMPLES = 64
_BINS = 2048
_LEVELS = 255
_SHRINKS = np.linspace(1.0, 0.3, 36)
_MIN, _MAX = ".edgekit.min", ".edgekit.max"


class Calibrator:
    """Ranges of one model's float tensors on given samples; what was observed is kept.

    Args:
        model: with inferred shapes; it is not changed.
        inputs: specs of the model's inputs.
        arrays: calibration samples by input, axis 0 counting them; at most `MAX_SAMPLES`, evenly
            spread, are used.
        scratch: a folder for temporary models.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        inputs: tuple[TensorSpec, ...],
        arrays: Mapping[str, NDArray[Any]],
        scratch: Path,
    ) -> None:
        count = len(next(iter(arrays.values())))
        chosen = np.linspace(0, count - 1, min(count, MAX_SAMPLES)).round().astype(np.intp)
        self._arrays = {name: array[chosen] for name, array in arrays.items()}
        self._inputs = inputs
        self._model = model
        self._scratch = scratch
        self._extremes: dict[str, Range] | None = None
        self._histograms: dict[str, Histogram] | None = None

    def ranges(self, method: Method, *, percentile: float = 99.99) -> dict[str, Range]:
        """Lowest and highest value to represent, by tensor.

        A tensor that took an infinite value (a mask of attention, say), or none that is a number,
        has no range.

        - `minmax`: the extremes that were seen.
        - `percentile`: what leaves `(100 - percentile) / 2` per cent of values outside on either
          side.
        - `mse`: the extremes shrunk by the factor that loses least, in mean squared error, when
          values are rounded to 255 levels (Nagel et al., "A White Paper on Neural Network
          Quantization", 2021, section 3.1).
        """
        extremes = self._observe_extremes()
        if method == "minmax":
            return dict(extremes)
        histograms = self._observe_histograms()
        if method == "percentile":
            return {
                name: percentile_range(histograms[name], extremes[name], percentile)
                for name in extremes
            }
        return {name: mse_range(histograms[name], extremes[name]) for name in extremes}

    def _observe_extremes(self) -> dict[str, Range]:
        if self._extremes is None:
            lows: dict[str, float] = {}
            highs: dict[str, float] = {}
            for outputs in self._run(_with_extremes(self._model)):
                for name, value in outputs.items():
                    if name.endswith(_MIN):
                        tensor = name.removesuffix(_MIN)
                        lows[tensor] = min(lows.get(tensor, np.inf), float(value))
                    elif name.endswith(_MAX):
                        tensor = name.removesuffix(_MAX)
                        highs[tensor] = max(highs.get(tensor, -np.inf), float(value))
            found = {name: (lows[name], highs[name]) for name in lows}
            self._extremes = {name: seen for name, seen in found.items() if np.isfinite(seen).all()}
        return self._extremes

    def _observe_histograms(self) -> dict[str, Histogram]:
        if self._histograms is None:
            extremes = self._observe_extremes()
            counts = {name: np.zeros(_BINS, np.int64) for name in extremes}
            inputs = {value.name for value in self._model.graph.input}
            for name in inputs & extremes.keys():
                counts[name] += np.histogram(self._arrays[name], _BINS, range=extremes[name])[0]
            for outputs in self._run(_with_tensors(self._model, set(extremes) - inputs)):
                for name in outputs.keys() & counts.keys():
                    counts[name] += np.histogram(outputs[name], _BINS, range=extremes[name])[0]
            self._histograms = counts
        return self._histograms

    def _run(self, model: onnx.ModelProto) -> Iterator[dict[str, NDArray[Any]]]:
        path = self._scratch / "calibrate.onnx"
        path.write_bytes(serialise(model))
        session = ENGINES.get("onnxruntime").open(path, options={})
        try:
            for feed in iter_batches(self._inputs, self._arrays, size=1):
                yield session.run(feed)
        finally:
            session.close()
            path.unlink()


def percentile_range(histogram: Histogram, extremes: Range, percentile: float) -> Range:
    """The range that leaves the tails out; a tail is never cut beyond zero's side."""
    total = histogram.sum()
    if total == 0:
        return extremes
    edges = np.linspace(*extremes, _BINS + 1)
    share = np.cumsum(histogram) / total
    tail = (100 - percentile) / 200
    low = edges[int(np.searchsorted(share, tail, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1 - tail, side="left")) + 1, _BINS)]
    return float(low), float(high)


def mse_range(histogram: Histogram, extremes: Range) -> Range:
    """The extremes shrunk by the factor of least mean squared error at 255 steps."""
    low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)
    if low == high:
        return extremes
    edges = np.linspace(*extremes, _BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    losses = []
    for shrink in _SHRINKS:
        step = (high - low) * shrink / _LEVELS
        rounded = np.clip(np.round(centres / step) * step, low * shrink, high * shrink)
        losses.append(float(histogram @ np.square(centres - rounded)))
    best = float(_SHRINKS[int(np.argmin(losses))])
    return low * best, high * best


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the float32 activations whose type is known: inputs and results of nodes."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}
    known = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    floats = {v.name for v in known if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return sorted(floats - constants)


def _with_extremes(model: onnx.ModelProto) -> onnx.ModelProto:
    augmented = _copy(model)
    for name in float_tensors(model):
        for operator, suffix in (("ReduceMin", _MIN), ("ReduceMax", _MAX)):
            output = f"{name}{suffix}"
            node = helper.make_node(operator, [name], [output], f"{output}.node", keepdims=0)
            augmented.graph.node.append(node)
            augmented.graph.output.append(
                helper.make_tensor_value_info(output, TensorProto.FLOAT, [])
            )
    return augmented


def _with_tensors(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    augmented = _copy(model)
    for name in sorted(names - {value.name for value in model.graph.output}):
        augmented.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return augmented


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
