"""Views: a few numbers that stand for one sample of a tensor, the same at the build and on a board.

A view looks at 4,096 values at most, evenly spread over the sample, so that its cost is bounded
whatever the sample's size. Where a value is not finite, the numbers that it goes into are NaN.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.structs import Strict

MAX_VALUES = 4096
MAX_TABLE = 32
MAX_CHANNELS = 6

_LINE = 512
_SEGMENT = 128
_PER_CHANNEL = ("mean", "std", "min", "max", "roughness")
_OF_SCORES = ("class", "confidence", "entropy")

Row = NDArray[Any]
Floats = NDArray[np.float64]


class View(Strict, frozen=True, kw_only=True):
    """How samples of one tensor are looked at.

    Attributes:
        tensor: name of the input or output.
        kind: `values` takes each value for itself; `channels` takes mean, standard deviation,
            least and largest value and roughness of each channel, and whether the whole sample is
            one value; `scores` takes class, confidence and entropy of a classifier's answer.
        rank: dimensions of one sample, without an axis that counts samples.
        axis: of the sample, along which its channels lie; None where all of it is one channel.
        size: how many values, channels or classes there are.
        softmax: whether scores must be turned into probabilities.
    """

    tensor: str
    kind: Literal["values", "channels", "scores"]
    rank: Annotated[int, msgspec.Meta(ge=0, le=32)]
    axis: Annotated[int, msgspec.Meta(ge=0, le=31)] | None = None
    size: Annotated[int, msgspec.Meta(ge=1)]
    softmax: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the numbers, in their order."""
        if self.kind == "values":
            if self.size == 1:
                return (self.tensor,)
            return tuple(f"{self.tensor}[{i}]" for i in range(self.size))
        if self.kind == "scores":
            return tuple(f"{self.tensor} {name}" for name in _OF_SCORES)
        channels = [""] if self.axis is None else [f" channel {i}" for i in range(self.size)]
        numbers = [f"{self.tensor}{c} {name}" for c in channels for name in _PER_CHANNEL]
        return (*numbers, f"{self.tensor} constant")

    def row(self, array: Row, position: int) -> Row | None:
        """One sample of an array with or without an axis 0 that counts them; None where the
        sample has another shape than this view is for."""
        if array.ndim == self.rank + 1:
            array = array[position]
        if array.ndim != self.rank or array.size == 0:
            return None
        if self.kind == "channels":
            fits = self.axis is None or array.shape[self.axis] == self.size
        else:
            fits = array.size == self.size
        return array if fits else None

    def measure(self, row: Row) -> Floats:
        """The numbers of one sample, [features]."""
        # A value that overflows or is not finite shows in the numbers; that is what they are for.
        with np.errstate(all="ignore"):
            if self.kind == "values":
                values = row.reshape(-1).astype(np.float64)
                values[~np.isfinite(values)] = np.nan
                return values
            if self.kind == "scores":
                return _scores(row, softmax=self.softmax)
            return _channels(row, self.axis)


def view_of(name: str, sample: Row, *, scores: bool = False, softmax: bool = False) -> View | None:
    """The view for samples like this one; None for texts and empty samples.

    Channels are the smallest axis of at most 6 of a sample with two axes or more, the first where
    two are as small.

    Args:
        name: of the tensor.
        sample: one, without an axis that counts samples.
        scores: whether the tensor holds a classifier's scores.
        softmax: whether those are not probabilities yet.
    """
    if sample.dtype.kind not in "biuf" or sample.size == 0:
        return None
    if scores:
        return View(tensor=name, kind="scores", rank=sample.ndim, size=sample.size, softmax=softmax)
    if sample.size <= MAX_TABLE:
        return View(tensor=name, kind="values", rank=sample.ndim, size=sample.size)
    sizes = sample.shape if sample.ndim > 1 else ()
    axes = [axis for axis, size in enumerate(sizes) if 1 < size <= MAX_CHANNELS]
    axis = min(axes, key=lambda a: sample.shape[a], default=None)
    size = 1 if axis is None else sample.shape[axis]
    return View(tensor=name, kind="channels", rank=sample.ndim, axis=axis, size=size)


def _channels(row: Row, axis: int | None) -> Floats:
    values = _spread(row[np.newaxis] if axis is None else np.moveaxis(row, axis, 0))
    flat = values.reshape(len(values), -1)
    numbers = np.empty((len(values), len(_PER_CHANNEL)))
    least, largest = flat.min(axis=1), flat.max(axis=1)
    mean = flat.mean(axis=1)
    deviation = flat - mean[:, np.newaxis]
    std = np.sqrt(np.einsum("cv,cv->c", deviation, deviation) / flat.shape[1])
    steps = np.abs(values[..., 1:] - values[..., :-1]).reshape(len(values), -1)
    numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 3] = mean, std, least, largest
    # What a blurred picture lacks, whatever its contrast.
    numbers[:, 4] = steps.mean(axis=1) / np.maximum(std, 1e-12) if steps.size else 0.0
    numbers[~np.isfinite(numbers).all(axis=1)] = np.nan
    constant = float(least.min() == largest.max()) if np.isfinite(mean).all() else np.nan
    return np.append(numbers.reshape(-1), constant)


def _spread(channels: Row) -> NDArray[np.float32]:
    """Lines of neighbouring values [channels, lines, values], evenly spread over the sample."""
    count, *inner, width = channels.shape if channels.ndim > 1 else (len(channels), 1)
    # A long line is looked at in pieces, so that several places of it count.
    length = width if width <= _LINE else _SEGMENT
    pieces = width // length
    lines = int(np.prod(inner, dtype=np.int64)) * pieces
    taken = max(1, min(lines, MAX_VALUES // (count * length)))
    grid = channels.reshape(count, *inner, width)
    if taken == lines and pieces == 1:
        return np.asarray(grid.reshape(count, lines, length), np.float32)
    places = (np.arange(taken) * 2 + 1) * lines // (2 * taken)
    found = np.empty((count, taken, length), np.float32)
    for at, place in enumerate(places.tolist()):
        line, piece = divmod(place, pieces)
        index = np.unravel_index(line, inner) if len(inner) > 1 else (line,) if inner else ()
        found[:, at] = grid[(slice(None), *index)][:, piece * length : (piece + 1) * length]
    return found


def _scores(row: Row, *, softmax: bool) -> Floats:
    scores = row.reshape(-1).astype(np.float64)
    if not np.isfinite(scores).all():
        return np.full(len(_OF_SCORES), np.nan)
    shares = np.exp(scores - scores.max()) if softmax else np.maximum(scores, 0.0)
    shares /= max(float(shares.sum()), 1e-12)
    best = int(shares.argmax())
    entropy = -float(shares @ np.log(np.maximum(shares, 1e-12))) / np.log(max(2, len(shares)))
    return np.array([best, shares[best], entropy])
