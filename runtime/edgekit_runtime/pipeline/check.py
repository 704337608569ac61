"""Check: whether the steps of a pipeline fit a model, told from shapes, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import RecipeError
from edgekit.manifest import Datatype, TensorSpec
from edgekit.steps import (
    Boxes,
    CenterCrop,
    Channels,
    Crop,
    Dtype,
    Layout,
    Letterbox,
    PostStep,
    PreStep,
    Resize,
    TopK,
)
from edgekit_runtime.pipeline.finish import PROBABILITIES, read_by, unread
from edgekit_runtime.pipeline.prepare import require_order

_BATCHED_AXES = 4


@dataclass(frozen=True)
class Form:
    """What the steps make of any picture; -1 for a size that depends on it."""

    datatype: Datatype
    channels: int
    height: int
    width: int
    channels_last: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        if self.channels_last:
            return self.height, self.width, self.channels
        return self.channels, self.height, self.width


def check(
    pre: Sequence[PreStep],
    post: Sequence[PostStep],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    """Raise `RecipeError` where steps fit neither each other nor the model."""
    if pre:
        picture_input(pre, inputs)
    answers(post, outputs)


def form_of(steps: Sequence[PreStep]) -> Form:
    """The form of what the steps give, raising `RecipeError` where they cannot be run."""
    require_order(steps)
    datatype: Datatype = "FP32"
    height = width = -1
    channels, channels_last = 3, True
    for step in steps:
        if isinstance(step, Resize):
            height, width = step.height or -1, step.width or -1
        elif isinstance(step, Letterbox | CenterCrop | Crop):
            height, width = step.height, step.width
        elif isinstance(step, Channels):
            channels = 1 if step.order == "gray" else 3
        elif isinstance(step, Layout):
            channels_last = step.to == "NHWC"
        elif isinstance(step, Dtype):
            datatype = step.to
        elif channels == 1 and max(len(step.mean), len(step.std)) > 1:
            raise RecipeError("preprocess: normalise has three numbers, a gray picture one channel")
    return Form(datatype, channels, height, width, channels_last)


def picture_input(steps: Sequence[PreStep], inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The input that the steps make a picture for, raising `RecipeError` where it is not one."""
    form = form_of(steps)
    found = [spec for spec in inputs if _takes(spec, form)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{spec.name!r} {spec.datatype} {list(spec.shape)}" for spec in inputs)
    if found:
        raise RecipeError(
            f"preprocess fits several inputs of the model: {listed}",
            hint="a picture can stand for one input only: leave preprocess out",
        )
    raise RecipeError(
        f"preprocess gives {form.datatype} {list(form.shape)}, and no input of the model is that:"
        f" {listed}",
        hint="mind its steps resize, layout and dtype",
    )


def answers(steps: Sequence[PostStep], outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What `finish` gives, as specs; -1 for sizes that depend on the picture.

    Raises `RecipeError` where the steps do not fit the outputs, or two would give one name.
    """
    by_name = {spec.name: spec for spec in outputs}
    given: list[TensorSpec] = []
    for step, name in zip(steps, read_by(steps, by_name), strict=True):
        if isinstance(step, TopK):
            given += _ranking(step, by_name[name])
        elif isinstance(step, Boxes):
            _require_named(step, by_name)
            given += _found(step, batch_of(by_name[name]))
    for name in unread(steps, by_name):
        shape = batch_of(by_name[name]), _classes(by_name[name])
        given.append(TensorSpec(name=PROBABILITIES, datatype="FP32", shape=shape))
    taken = set(by_name)
    for spec in given:
        if spec.name in taken:
            raise RecipeError(
                f"postprocess gives {spec.name!r}, which the model or another step gives, too",
                hint="set prefix in the step: its answers are then called after that",
            )
        taken.add(spec.name)
    return tuple(given)


def batch_of(spec: TensorSpec) -> int:
    """How many samples a tensor holds; -1 for the caller's choice."""
    return spec.shape[0] if spec.shape else 1


def _takes(spec: TensorSpec, form: Form) -> bool:
    inner = spec.shape[1:] if len(spec.shape) == _BATCHED_AXES else spec.shape
    if spec.datatype != form.datatype or len(inner) != len(form.shape):
        return False
    # A size that depends on the picture may turn out to be right.
    pairs = zip(form.shape, inner, strict=True)
    return all(-1 in pair or pair[0] == pair[1] for pair in pairs)


def _classes(spec: TensorSpec) -> int:
    sizes = [size for size in spec.shape[1:] if size != 1]
    if len(sizes) > 1:
        raise RecipeError(
            f"postprocess: output {spec.name!r} is {list(spec.shape)}, the step takes scores [n, c]"
        )
    return sizes[0] if sizes else 1


def _ranking(step: TopK, spec: TensorSpec) -> list[TensorSpec]:
    classes = _classes(spec)
    if step.labels is not None and classes not in (-1, len(step.labels)):
        raise RecipeError(
            f"postprocess: top_k has {len(step.labels)} labels, output {spec.name!r} has"
            f" {classes} classes"
        )
    known = len(step.labels) if step.labels is not None else classes
    shape = batch_of(spec), -1 if known == -1 else min(step.k, known)
    names: dict[str, Datatype] = {"indices": "INT64", "scores": "FP32"}
    if step.labels is not None:
        names = {"labels": "BYTES", "scores": "FP32", "indices": "INT64"}
    return [
        TensorSpec(name=f"{step.prefix}{name}", datatype=datatype, shape=shape)
        for name, datatype in names.items()
    ]


def _found(step: Boxes, batch: int) -> list[TensorSpec]:
    names: dict[str, tuple[Datatype, tuple[int, ...]]] = {
        "boxes": ("FP32", (batch, -1, 4)),
        "box_scores": ("FP32", (batch, -1)),
        "box_classes": ("INT64", (batch, -1)),
        "box_counts": ("INT32", (batch,)),
    }
    if step.labels is not None:
        names["box_labels"] = ("BYTES", (batch, -1))
    return [
        TensorSpec(name=f"{step.prefix}{name}", datatype=datatype, shape=shape)
        for name, (datatype, shape) in names.items()
    ]


def _require_named(step: Boxes, outputs: Mapping[str, Any]) -> None:
    for name in (step.scores, step.classes, step.count):
        if name is not None and name not in outputs:
            raise RecipeError(
                f"postprocess: the model gives no output {name!r}; it gives {', '.join(outputs)}"
            )
