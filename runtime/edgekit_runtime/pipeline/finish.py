"""Finish: a model's outputs to the answers that a caller asked for, by name.

| step | gives |
|---|---|
| top_k | `indices` INT64 [n, k], `scores` FP32 [n, k], and with names `labels` BYTES [n, k] |
| boxes | `boxes` FP32 [n, d, 4], `box_scores` FP32, `box_classes` INT64, with names `box_labels` BYTES, all [n, d], and `box_counts` INT32 [n] |
| softmax, sigmoid that no other step reads | `probabilities` FP32 [n, c] |

Boxes are x1, y1, x2, y2 in pixels of the picture. A picture with fewer than d boxes is padded: zeros,
class -1, an empty name.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, RecipeError
from edgekit.steps import Activation, Boxes, PostStep, Sigmoid, Softmax, TopK
from edgekit_runtime.pipeline.boxes import Found, detect
from edgekit_runtime.pipeline.families import Outputs, misshapen, output_of
from edgekit_runtime.pipeline.frame import Frame
from edgekit_runtime.pipeline.scores import activated, ranked

Answers = dict[str, NDArray[Any]]
PROBABILITIES = "probabilities"


def finish(steps: Sequence[PostStep], outputs: Outputs, frames: Sequence[Frame]) -> Answers:
    """Every answer that the steps give, by name.

    Args:
        outputs: of the model, axis 0 counting samples.
        frames: where each sample's picture lies in its input.

    Raises:
        EngineError: an output has another shape than a step takes.
        RecipeError: the steps do not fit the outputs or each other; `check` tells that before.
    """
    values = dict(outputs)
    answers: Answers = {}
    for step, name in zip(steps, read_by(steps, outputs), strict=True):
        if isinstance(step, Boxes):
            answers |= _boxes(step, values, frames)
        elif isinstance(step, TopK):
            answers |= _top_k(step, _scores(name, values))
        else:
            activation: Activation = "softmax" if isinstance(step, Softmax) else "sigmoid"
            values[name] = activated(_scores(name, values), activation)
    for name in unread(steps, outputs):
        answers[PROBABILITIES] = values[name]
    return answers


def read_by(steps: Sequence[PostStep], outputs: Mapping[str, Any]) -> list[str]:
    """The output that each step reads first, raising `RecipeError` where steps contradict."""
    ended: set[str] = set()
    changed: set[str | None] = set()
    names = []
    for step in steps:
        name = output_of(step, outputs)
        if name in ended:
            raise RecipeError(f"postprocess: top_k must be the last step of its output {name!r}")
        if isinstance(step, TopK):
            ended.add(name)
        read = (name, step.scores) if isinstance(step, Boxes) else ()
        if changed.intersection(read):
            raise RecipeError(
                "postprocess: boxes reads what softmax or sigmoid has changed",
                hint="set its field activation instead",
            )
        if isinstance(step, Softmax | Sigmoid):
            changed.add(name)
        names.append(name)
    return names


def unread(steps: Sequence[PostStep], outputs: Mapping[str, Any]) -> list[str]:
    """Outputs that softmax or sigmoid changed and no step read; they are an answer themselves."""
    changed: dict[str, None] = {}
    for step, name in zip(steps, read_by(steps, outputs), strict=True):
        if isinstance(step, Softmax | Sigmoid):
            changed[name] = None
        else:
            changed.pop(name, None)
    if len(changed) > 1:
        raise RecipeError(f"postprocess: {', '.join(changed)} would both be {PROBABILITIES}")
    return list(changed)


def _scores(name: str, outputs: Outputs) -> NDArray[np.float32]:
    """An output as scores [n, c]; axes of one in between are left out."""
    array = outputs[name]
    if array.ndim < 2 or array.dtype.kind not in "fiu" or sum(s > 1 for s in array.shape[1:]) > 1:
        raise misshapen(name, array, "the step takes scores [n, c]")
    return array.reshape(len(array), -1).astype(np.float32)


def _top_k(step: TopK, scores: NDArray[np.float32]) -> Answers:
    if step.labels is not None and len(step.labels) != scores.shape[1]:
        raise EngineError(
            f"postprocess: top_k has {len(step.labels)} labels for {scores.shape[1]} classes"
        )
    best = ranked(scores, step)
    found: Answers = {f"{step.prefix}indices": best.indices, f"{step.prefix}scores": best.scores}
    if step.labels is not None:
        found[f"{step.prefix}labels"] = _texts(step.labels)[best.indices]
    return found


def _boxes(step: Boxes, outputs: Outputs, frames: Sequence[Frame]) -> Answers:
    sizes = [(frame.input_width, frame.input_height) for frame in frames]
    found = [
        one._replace(boxes=frame.to_picture(one.boxes))
        for one, frame in zip(detect(step, outputs, sizes), frames, strict=True)
    ]
    return _padded(step, found)


def _padded(step: Boxes, found: Sequence[Found]) -> Answers:
    counts = np.array([len(one.scores) for one in found], np.int32)
    shape = len(found), int(counts.max(initial=0))
    boxes, scores = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.float32)
    classes = np.full(shape, -1, np.int64)
    for i, one in enumerate(found):
        boxes[i, : counts[i]], scores[i, : counts[i]] = one.boxes, one.scores
        classes[i, : counts[i]] = one.classes
    prefix = step.prefix
    answers: Answers = {
        f"{prefix}boxes": boxes,
        f"{prefix}box_scores": scores,
        f"{prefix}box_classes": classes,
        f"{prefix}box_counts": counts,
    }
    if step.labels is not None:
        answers[f"{prefix}box_labels"] = _named_classes(step.labels, classes)
    return answers


def _named_classes(labels: Sequence[str], classes: NDArray[np.int64]) -> NDArray[Any]:
    """Names of classes; the number of one that has none, nothing for padding."""
    names = np.empty(classes.shape, object)
    for at, number in np.ndenumerate(classes):
        label = int(number)
        text = labels[label] if 0 <= label < len(labels) else str(label)
        names[at] = b"" if label < 0 else text.encode()
    return names


def _texts(labels: Sequence[str]) -> NDArray[Any]:
    texts = np.empty(len(labels), object)
    texts[:] = [label.encode() for label in labels]
    return texts
