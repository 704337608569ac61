"""Metrics by name: what a recipe's `metric` may say, and what is taken where it says nothing.

One file a family of tasks. Each metric scores the float source and an artefact as
`edgekit_converters.metrics.scoring` says. Other packages add theirs by the entry point
`edgekit.metrics`; a user's own function is `module:function`.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import RecipeError, UsageError
from edgekit.registry import Registry
from edgekit.steps import Boxes, PostStep
from edgekit_converters.metrics.scoring import Measure, Outputs
from edgekit_converters.metrics.views import (
    Kind,
    Labels,
    View,
    is_class_labels,
    recognise,
    view_as,
)
from edgekit_runtime.pipeline import output_of

METRICS: Registry[Measure] = Registry(
    "metric",
    group="edgekit.metrics",
    builtin={
        "agreement": "edgekit_converters.metrics.classification:AGREEMENT",
        "top1": "edgekit_converters.metrics.classification:TOP1",
        "top5": "edgekit_converters.metrics.classification:TOP5",
        "mse": "edgekit_converters.metrics.regression:MSE",
        "mae": "edgekit_converters.metrics.regression:MAE",
        "cosine": "edgekit_converters.metrics.embeddings:COSINE",
        "retrieval": "edgekit_converters.metrics.embeddings:RETRIEVAL",
        "iou": "edgekit_converters.metrics.segmentation:IOU",
        "edit_distance": "edgekit_converters.metrics.sequences:EDIT_DISTANCE",
        "map50": "edgekit_converters.metrics.detection:MAP50",
        "map": "edgekit_converters.metrics.detection:MAP",
        "box_agreement": "edgekit_converters.metrics.detection:BOX_AGREEMENT",
    },
)

_NEEDS: dict[Kind, str] = {
    "classes": "class scores [n, classes]",
    "index": "class indices [n]",
    "binary": "one score a sample",
    "masks": "masks [n, h, w] or their scores [n, classes, h, w]",
    "sequences": "tokens [n, t] or their scores [n, t, classes]",
    "boxes": "boxes in a layout of edgekit_converters.metrics.boxes",
}


def find(name: str) -> Measure:
    """The metric called `name`.

    Raises:
        RecipeError: there is none, or the user's function cannot be imported.
    """
    if ":" in name:
        from edgekit_converters.metrics import user

        return user.measure(name)
    try:
        return METRICS.get(name)
    except UsageError as e:
        raise RecipeError(e.message, hint=f"{e.hint}, or module:function of your own") from e


def identity(name: str | None) -> str:
    """What a figure of this metric may be cached by: for a user's function, its file counts."""
    if name is None or ":" not in name:
        return name or ""
    from edgekit_converters.metrics import user

    return f"{name}@{user.identity(name)}"


def choose(
    name: str | None, outputs: Outputs, labels: Labels, post: Sequence[PostStep] = ()
) -> tuple[str, Measure, View]:
    """The metric and the view of the outputs it judges by.

    Args:
        name: from the recipe; None takes what the outputs and labels suggest.
        outputs: of the float source.
        post: the recipe's postprocess; a step `boxes` says that this is a detector, and how its
            boxes are read.

    Raises:
        RecipeError: there is no such metric, or the outputs are nothing it can judge.
    """
    step = next((step for step in post if isinstance(step, Boxes)), None)
    detector = None if step is None else View("boxes", output_of(step, outputs), step=step)
    if name is None:
        view = detector or recognise(outputs, labels)
        name = _default(view, outputs, labels)
        return name, find(name), view
    measure = find(name)
    if measure.kinds is None:
        view = recognise(outputs, labels)
        # Without labels nobody says that [n, d] are scores, and the function judges by itself.
        guessed = view.kind == "classes" and not is_class_labels(labels)
        return name, measure, View("values") if guessed else view
    if detector is not None and "boxes" in measure.kinds:
        return name, measure, detector
    for kind in measure.kinds:
        asked = view_as(kind, outputs, labels, asked=True)
        if asked is not None:
            return name, measure, asked
    shapes = ", ".join(f"{output!r} {list(a.shape)}" for output, a in outputs.items())
    raise RecipeError(
        f"metric {name} needs {_NEEDS[measure.kinds[0]]}; the model has {shapes}",
        hint="use metric: cosine or mse in the recipe, or module:function of your own",
    )


def _default(view: View, outputs: Outputs, labels: Labels) -> str:
    if view.kind in ("classes", "index", "binary"):
        texts = view.kind == "index" and outputs[view.output].dtype.kind not in "biu"
        return "top1" if is_class_labels(labels) and not texts else "agreement"
    if view.kind == "masks":
        return "iou"
    if view.kind == "sequences":
        return "edit_distance"
    if view.kind == "boxes":
        return "box_agreement" if labels is None else "map50"
    from edgekit_converters.metrics.regression import targeted_output

    # A single number has no direction that a cosine could compare.
    single = all(array[:1].size <= 1 for array in outputs.values())
    return "mse" if single or targeted_output(outputs, labels) else "cosine"
