"""Families: what detectors write, read into boxes and scores of one form.

Sources: Ultralytics `ops.non_max_suppression` and YOLOv5 `utils/general.py` for the raw anchors of
`yolov8` and `yolov5`; Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2, and
`torchvision.models.detection._utils.BoxCoder` for `ssd`; TFLite's `TFLite_Detection_PostProcess`
for `decoded` with classes and a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EngineError, RecipeError
from edgekit.steps import Boxes, Corners, Family, PostStep, PriorLayer

Outputs = Mapping[str, NDArray[Any]]

# As torchvision: a box grows by no more than this factor's exponential.
_MOST_GROWTH = float(np.log(1000.0 / 16))
_TAKES: dict[Family, str] = {
    "yolov5": "[n, d, 5 + c]",
    "yolov8": "[n, 4 + c, d]",
    "ssd": "[n, d, 4]",
    "decoded": "[n, d, 4]",
    "rows": "[n, d, 6]",
}


class Raw(NamedTuple):
    """What a detector says of n pictures, before anything was chosen.

    Attributes:
        boxes: [n, d, 4], four numbers each as the step's `corners` say.
        scores: [n, d, c], or [n, d] of the one class that `classes` names.
        objects: [n, d], whether there is anything at all; None where the model does not say.
        classes: [n, d].
        counts: [n], how many of the d are real.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    objects: NDArray[Any] | None = None
    classes: NDArray[Any] | None = None
    counts: NDArray[Any] | None = None


def read(step: Boxes, outputs: Outputs) -> Raw:
    """The outputs that a step names, told apart.

    Raises:
        EngineError: an output has another shape than the family takes.
        RecipeError: an output is missing, or the step does not say which of several it means.
    """
    first, named = output_of(step, outputs), step.family
    array = outputs[first]
    if array.ndim != 3:
        raise misshapen(first, array, f"boxes of family {named} takes {_TAKES[named]}")
    if named == "yolov8":
        _require(array.shape[1] > 4, first, array, named)
        return Raw(array[:, :4].transpose(0, 2, 1), array[:, 4:].transpose(0, 2, 1))
    if named == "yolov5":
        _require(array.shape[2] > 5, first, array, named)
        return Raw(array[..., :4], array[..., 5:], objects=array[..., 4])
    if named == "rows":
        _require(array.shape[2] == 6, first, array, named)
        return Raw(array[..., :4], array[..., 4], classes=array[..., 5])
    _require(array.shape[2] == 4, first, array, named)
    assert step.scores is not None
    scores = _beside(outputs, step.scores, array, ndim=2 if step.classes else 3)
    classes = None if step.classes is None else _beside(outputs, step.classes, array, ndim=2)
    counts = None if step.count is None else _output(outputs, step.count).reshape(-1)
    if counts is not None and len(counts) != len(array):
        raise misshapen(str(step.count), counts, f"it should count boxes of {len(array)} pictures")
    return Raw(array, scores, classes=classes, counts=counts)


def output_of(step: PostStep, outputs: Mapping[str, Any]) -> str:
    """The output that a step reads first; the only one that nothing else of the step names.

    Raises `RecipeError` where there are several, or none of the name that the step gives.
    """
    if step.output is not None:
        _output(outputs, step.output)
        return step.output
    beside = (step.scores, step.classes, step.count) if isinstance(step, Boxes) else ()
    left = [name for name in outputs if name not in beside]
    if len(left) != 1:
        raise RecipeError(
            f"postprocess: {step.__struct_config__.tag} does not say which output it means:"
            f" {', '.join(left) or 'none is left'}",
            hint="name it in the field output",
        )
    return left[0]


def misshapen(name: str, array: NDArray[Any], wanted: str) -> EngineError:
    """An output that a step cannot read."""
    return EngineError(
        f"postprocess: output {name!r} has shape {list(array.shape)}, {wanted}",
        hint="name another output in the step, or take the step that fits this model",
    )


def to_xyxy(numbers: NDArray[np.float32], corners: Corners) -> NDArray[np.float32]:
    """Four numbers a box [k, 4] as x1, y1, x2, y2."""
    if corners in ("yxyx", "cycxhw"):
        numbers = numbers[:, [1, 0, 3, 2]]
    if corners in ("xyxy", "yxyx"):
        return numbers
    first, size = numbers[:, :2], numbers[:, 2:]
    low = first if corners == "xywh" else first - size / 2
    return np.hstack([low, low + size])


def decoded_ssd(offsets: NDArray[np.float32], at: NDArray[np.intp], step: Boxes) -> Any:
    """Boxes [k, 4] (x1, y1, x2, y2, shares of the input) from offsets from the priors at `at`.

    Raises `EngineError` where the model has more anchors than the step has priors.
    """
    centred = offsets[:, [1, 0, 3, 2]] if step.corners == "cycxhw" else offsets
    own = priors(step.priors)[at]
    centre = centred[:, :2] * np.float32(step.variances[0]) * own[:, 2:] + own[:, :2]
    growth = np.minimum(centred[:, 2:] * np.float32(step.variances[1]), _MOST_GROWTH)
    return to_xyxy(np.hstack([centre, own[:, 2:] * np.exp(growth)]), "cxcywh")


@lru_cache(maxsize=8)
def priors(layers: tuple[PriorLayer, ...]) -> NDArray[np.float32]:
    """Priors [d, 4] (centre x, y, width, height), as shares of the input."""
    found = []
    for layer in layers:
        step_x, step_y = layer.step or (1 / layer.columns, 1 / layer.rows)
        y, x, size = np.meshgrid(
            (np.arange(layer.rows) + 0.5) * step_y,
            (np.arange(layer.columns) + 0.5) * step_x,
            np.arange(len(layer.sizes)),
            indexing="ij",
        )
        sizes = np.array(layer.sizes)[size.reshape(-1)]
        found.append(np.column_stack([x.reshape(-1), y.reshape(-1), sizes]))
    return np.concatenate(found).astype(np.float32)


def _require(holds: bool, name: str, array: NDArray[Any], family: Family) -> None:
    if not holds:
        raise misshapen(name, array, f"boxes of family {family} takes {_TAKES[family]}")


def _output(outputs: Mapping[str, Any], name: str) -> Any:
    if name not in outputs:
        raise RecipeError(
            f"postprocess: the model gives no output {name!r}; it gives {', '.join(outputs)}"
        )
    return outputs[name]


def _beside(outputs: Outputs, name: str, boxes: NDArray[Any], *, ndim: int) -> NDArray[Any]:
    array = _output(outputs, name)
    if array.ndim != ndim or array.shape[:2] != boxes.shape[:2]:
        classes = ", c" if ndim == 3 else ""
        n, d = boxes.shape[:2]
        raise misshapen(name, array, f"beside boxes {[n, d, 4]} it should be [{n}, {d}{classes}]")
    return np.asarray(array)
