"""Observe: what the tensors inside a float `.tflite` hold on the calibration samples.

Ranges are taken on the very file that is quantised, so no tensor has to be found by the name that
it once had in ONNX. The file is run sample by sample with every tensor kept: once for extremes and
means, once more to count values between the extremes (`ranges`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BuildError
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
from edgekit_converters.targets.tflite import Port
from edgekit_runtime.engines import Tensors

_EXTREMES, _COUNTS, _MEAN = "extremes", "counts", "mean/"


@dataclass(frozen=True)
class Observation:
    """What was seen of a file's float tensors.

    Attributes:
        names: of the tensors that only took finite values, in the file's order.
        extremes: [tensor, 2], the lowest and highest value.
        counts: [tensor, BINS], how often values lay where between them (with zero).
        means: by tensor, the mean of each channel; channels are the last axis.
    """

    names: tuple[str, ...]
    extremes: NDArray[np.float64]
    counts: NDArray[np.int64]
    means: dict[str, NDArray[np.float64]]

    def ranges(self, method: Method, *, percentile: float) -> dict[str, Range]:
        """Lowest and highest value to represent, by tensor; methods as in `Calibrator.ranges`."""
        found: dict[str, Range] = {}
        for name, (low, high), counts in zip(self.names, self.extremes, self.counts, strict=True):
            span = with_zero((float(low), float(high)))
            found[name] = _range(method, counts, span, percentile)
        return found

    def save(self, path: Path) -> None:
        """Write it as `.npz`; equal observations give equal bytes."""
        arrays: dict[str, Any] = {_EXTREMES: self.extremes, _COUNTS: self.counts}
        arrays |= {f"{_MEAN}{name}": mean for name, mean in self.means.items()}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Observation:
        """Read what `save` wrote."""
        with np.load(path) as held:
            means = {n.removeprefix(_MEAN): held[n] for n in held.files if n.startswith(_MEAN)}
            return cls(tuple(means), held[_EXTREMES], held[_COUNTS], means)


def observe(path: Path, inputs: Sequence[Port], feeds: Sequence[Tensors]) -> Observation:
    """Run a float file over samples.

    Args:
        feeds: one inference each, by the source's names and in its layout.

    Raises:
        BuildError: LiteRT cannot run the file.
    """
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    sums: dict[str, NDArray[np.float64]] = {}
    for tensors in activations(path, inputs, feeds):
        for name, values in tensors.items():
            lows[name] = min(lows.get(name, np.inf), float(values.min(initial=np.inf)))
            highs[name] = max(highs.get(name, -np.inf), float(values.max(initial=-np.inf)))
            axes = tuple(range(values.ndim - 1))
            sums[name] = sums.get(name, 0.0) + values.mean(axis=axes, dtype=np.float64)
    names = [name for name in lows if np.isfinite([lows[name], highs[name]]).all()]
    spans = {name: with_zero((lows[name], highs[name])) for name in names}
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for tensors in activations(path, inputs, feeds):
        for name in names:
            counts[name] += counts_of(tensors[name], spans[name])
    return Observation(
        names=tuple(names),
        extremes=np.array([(lows[name], highs[name]) for name in names]).reshape(-1, 2),
        counts=np.array([counts[name] for name in names]).reshape(-1, BINS),
        means={name: sums[name] / len(feeds) for name in names},
    )


def activations(
    path: Path, inputs: Sequence[Port], feeds: Iterable[Tensors]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Float tensors by name, of one inference after the other; constants are left out.

    A tensor is only valid until the next one is asked for.

    Raises:
        BuildError: LiteRT cannot run the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        with warnings.catch_warnings():
            # It warns of the memory that all tensors take, and they are what is asked for.
            warnings.simplefilter("ignore", UserWarning)
            interpreter = Interpreter(
                model_path=str(path), num_threads=1, experimental_preserve_all_tensors=True
            )
        interpreter.allocate_tensors()
        index = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
        made = set(index.values()) | _made(path)
        names = {
            detail["index"]: detail["name"]
            for detail in interpreter.get_tensor_details()
            if detail["index"] in made and detail["dtype"] == np.float32
        }
        for feed in feeds:
            for port in inputs:
                array = feed[port.name]
                turned = array if port.axes is None else array.transpose(port.axes)
                interpreter.set_tensor(index[port.tensor], turned)
            interpreter.invoke()
            yield {name: interpreter.get_tensor(number) for number, name in names.items()}
    except (ValueError, RuntimeError) as e:
        raise BuildError(f"LiteRT cannot run {path.name} to observe its tensors: {e}") from e


def _made(path: Path) -> set[int]:
    """Numbers of the tensors that operators of the main graph make."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(path.read_bytes(), 0).Subgraphs(0)
    operators = [graph.Operators(number) for number in range(graph.OperatorsLength())]
    return {int(o.Outputs(i)) for o in operators for i in range(o.OutputsLength())}


def _range(method: Method, counts: Histogram, span: Range, percentile: float) -> Range:
    if method == "minmax":
        return span
    if method == "percentile":
        return percentile_range(counts, span, percentile)
    return mse_range(counts, span) if method == "mse" else entropy_range(counts, span)
