"""Answers: whether two versions of a model say the same of one input, and how sure they are.

Classes: the same first class, by name where both name theirs. Boxes: the share of them that have a
counterpart of the same class in the other answer. Anything else: outputs that are near each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.golden import Detections
from edgekit.manifest import TensorSpec
from edgekit.steps import Activation, Boxes, PostStep, Sigmoid, Softmax, TopK
from edgekit_runtime.canary.samples import NOTHING
from edgekit_runtime.engines import Tensors
from edgekit_runtime.pipeline.agree import answers_of, partners
from edgekit_runtime.pipeline.families import output_of
from edgekit_runtime.pipeline.finish import finish
from edgekit_runtime.pipeline.frame import Frame
from edgekit_runtime.pipeline.scores import activated

# Probabilities that a model gives itself sum up to 1, but for their rounding.
_ROUNDING = 0.02
_COLOURS = (1, 3, 4)


class Compared(NamedTuple):
    """What two answers have in common; see `samples.Sample`."""

    agreement: float
    drop: float
    signal: float


class Surface(NamedTuple):
    """What is known of a version's answers: its last steps, and its outputs."""

    post: Sequence[PostStep]
    outputs: tuple[TensorSpec, ...]


def compare(
    old: Surface,
    new: Surface,
    before: Tensors,
    after: Tensors,
    inputs: Tensors,
    *,
    tolerance: float,
) -> Compared:
    """Compare the outputs of both for one sample.

    Args:
        old: of the version that serves.
        new: of the other.
        before: outputs of the old version.
        after: outputs of the new one; finite where those are (`is_broken`).
        inputs: of the sample.
        tolerance: where there are neither classes nor boxes, what root mean square of the
            difference is near, as a share of the old output's.
    """
    has_boxes = [any(isinstance(step, Boxes) for step in one.post) for one in (old, new)]
    if has_boxes[0] != has_boxes[1]:
        # Answers of another kind agree in nothing.
        return Compared(0.0, NOTHING, 0.0)
    if has_boxes[0]:
        return _of_boxes(_detections(old, before, inputs), _detections(new, after, inputs))
    ours, theirs = _ranked(old, before), _ranked(new, after)
    if ours is not None and theirs is not None:
        named = ours.name is not None and theirs.name is not None
        same = float(ours.name == theirs.name if named else ours.number == theirs.number)
        return Compared(same, ours.probability - theirs.probability, ours.probability)
    return _of_numbers(before, after, tolerance=tolerance)


def is_broken(before: Tensors, after: Tensors) -> bool:
    """Whether the new answer has NaN or infinity where the old one has numbers."""
    return any(
        array.dtype.kind == "f"
        and not np.isfinite(array).all()
        and (name not in before or np.isfinite(before[name]).all())
        for name, array in after.items()
    )


class _First(NamedTuple):
    number: int
    name: str | None
    probability: float


def _ranked(surface: Surface, outputs: Tensors) -> _First | None:
    """The first class; `None` where these are no scores of classes."""
    named, activation, labels = _scores_of(surface, outputs)
    if named is None:
        return None
    scores = outputs[named]
    if scores.dtype.kind not in "fiu" or scores.size < 2 or max(scores.shape) != scores.size:
        return None
    found = _probabilities(scores.reshape(1, -1).astype(np.float32), activation)[0]
    first = int(found.argmax())
    name = labels[first] if labels is not None and first < len(labels) else None
    return _First(first, name, float(found[first]))


def _scores_of(
    surface: Surface, outputs: Tensors
) -> tuple[str | None, Activation, Sequence[str] | None]:
    activation: Activation = "none"
    labels: Sequence[str] | None = None
    named = next(iter(outputs)) if len(outputs) == 1 else _beside_label(outputs)
    for step in surface.post:
        named = output_of(step, outputs)
        if isinstance(step, Softmax | Sigmoid):
            activation = "softmax" if isinstance(step, Softmax) else "sigmoid"
        elif isinstance(step, TopK):
            labels = step.labels
    # One output of whole numbers is an answer, not scores.
    if named is not None and not surface.post and outputs[named].dtype.kind != "f":
        named = None
    return named, activation, labels


def _beside_label(outputs: Tensors) -> str | None:
    """Probabilities that stand beside the label made of them, as scikit-learn's classifiers do."""
    found = [name for name, array in outputs.items() if array.dtype.kind == "f"]
    others = [array for name, array in outputs.items() if name not in found]
    if len(found) != 1 or [array.size for array in others] != [1]:
        return None
    scores = outputs[found[0]].astype(np.float64)
    is_done = scores.min() >= -_ROUNDING and abs(float(scores.sum()) - 1) <= _ROUNDING
    return found[0] if is_done else None


def _probabilities(scores: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    if activation != "none":
        return activated(scores, activation)
    is_done = scores.min() >= -_ROUNDING and abs(float(scores.sum()) - 1) <= _ROUNDING
    return scores if is_done else activated(scores, "softmax")


def _detections(surface: Surface, outputs: Tensors, inputs: Tensors) -> list[Detections]:
    given = answers_of(surface.post, finish(surface.post, outputs, [_frame(inputs)]), 0)
    return [one for one in given if isinstance(one, Detections)]


def _frame(inputs: Tensors) -> Frame:
    """The picture in an input, taken as it stands there; boxes are compared in its pixels."""
    shape = next(array.shape for array in inputs.values() if array.ndim == 4)
    height, width = shape[2:] if shape[1] in _COLOURS else shape[1:3]
    return Frame(width=width, height=height, input_width=width, input_height=height)


def _of_boxes(ours: Sequence[Detections], theirs: Sequence[Detections]) -> Compared:
    pairs = total = 0
    for one, other in zip(ours, theirs, strict=True):
        pairs += sum(1 for _ in partners(one, other))
        total += len(one.scores) + len(other.scores)
    best = max((score for one in ours for score in one.scores), default=0.0)
    new_best = max((score for one in theirs for score in one.scores), default=0.0)
    return Compared(2 * pairs / total if total else 1.0, best - new_best, best)


def _of_numbers(before: Tensors, after: Tensors, *, tolerance: float) -> Compared:
    same = all(
        name in after and _is_near(array, after[name], tolerance) for name, array in before.items()
    )
    first = next(iter(before.values()))
    signal = float(first.mean()) if first.dtype.kind in "fiub" and first.size else 0.0
    return Compared(float(same), NOTHING, signal)


def _is_near(before: NDArray[np.generic], after: NDArray[np.generic], tolerance: float) -> bool:
    if before.shape != after.shape:
        return False
    if before.dtype.kind != "f":
        return bool((before == after).all())
    ours = before.astype(np.float64)
    away = float(np.sqrt(np.mean((after.astype(np.float64) - ours) ** 2))) if ours.size else 0.0
    return away <= tolerance * float(np.sqrt(np.mean(ours**2))) if ours.size else True
