"""Recipe: how a model is made smaller and faster, and what it may cost. Every field has a default.

The steps of pre- and post-processing are those of `edgekit.steps`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgekit import documents
from edgekit.errors import RecipeError
from edgekit.steps import PostStep, PreStep, Share
from edgekit.structs import Strict

Option = str | int | float | bool | tuple[str, ...]
MetricName = Annotated[
    str, msgspec.Meta(pattern=r"^([a-z][a-z0-9_]*|[A-Za-z_][\w.]*:[A-Za-z_]\w*)\Z")
]


class PassSpec(Strict, frozen=True, kw_only=True):
    """One pass by name, with its options."""

    name: str
    options: dict[str, Option] = {}


class Budget(Strict, frozen=True, kw_only=True):
    """What an artefact may cost against its float parent.

    Both limits of accuracy hold with 95 % confidence: the data must be able to show it.

    Attributes:
        accuracy_drop: largest drop of the metric, as a share (0.02 is two points).
        min_agreement: least share of samples with the float model's answer.
        min_speedup: least measured speed-up; only where the artefact ran on its own machine.
    """

    accuracy_drop: Share = 0.05
    min_agreement: Share = 0.9
    min_speedup: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    max_size_mb: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_latency_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_memory_mb: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Split(Strict, frozen=True, kw_only=True):
    """How samples are divided; whole groups go to one part, deterministically.

    Attributes:
        calibration: share that passes look at.
        selection: share that the search chooses by; what is reported comes from the rest.
        golden: samples whose answers a board must reproduce.
    """

    calibration: Share = 0.25
    selection: Share = 0.2
    golden: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    seed: int = 0


class Training(Strict, frozen=True, kw_only=True):
    """Makes the bundle trainable on a device: its `training/` entries are built.

    Attributes:
        loss: `cross_entropy` takes int64 labels [n], `mse` float targets shaped as the output.
        trainable: initialisers to train; `None` trains every float one that the loss reaches.
    """

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    optimiser: Literal["sgd"] = "sgd"
    momentum: Share = 0.9
    trainable: tuple[str, ...] | None = None


class Search(Strict, frozen=True, kw_only=True):
    """How far the search for the fastest artefact goes.

    Attributes:
        trials: most schemes that are made and measured for one engine.
        limit_s: seconds for one engine after which no further trial is begun. It is there for
            emergencies: a search that it ended is marked `truncated`, and may end elsewhere on
            another machine.
        variants: most variants of one engine that ship, the float model included.
    """

    trials: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 40
    limit_s: Annotated[float, msgspec.Meta(gt=0)] = 1800.0
    variants: Annotated[int, msgspec.Meta(ge=1, le=8)] = 3


class Licences(Strict, frozen=True, kw_only=True):
    """SPDX expressions for the bill of materials; None where nobody said."""

    model: str | None = None
    data: str | None = None


class Recipe(Strict, frozen=True, kw_only=True):
    """What `edgekit build --recipe` takes.

    Attributes:
        constants: values of inputs that are fixed for good, by name; the board does not see them.
        passes: run in this order, with the options that are given; what is left open is searched.
            None lets the search choose among all passes; an empty list builds float only.
        metric: a name that `edgekit_converters.metrics` knows, or `module:function` of the
            user's; None chooses by the model's outputs and the labels.
    """

    preprocess: tuple[PreStep, ...] = ()
    postprocess: tuple[PostStep, ...] = ()
    passes: tuple[PassSpec, ...] | None = None
    budget: Budget = Budget()
    metric: MetricName | None = None
    split: Split = Split()
    search: Search = Search()
    licences: Licences = Licences()
    training: Training | None = None
    constants: dict[str, Any] = {}


def read(path: Path) -> Recipe:
    """Read a recipe file (YAML), raising `RecipeError` that names the wrong field."""
    tree: Any = documents.read(path, what="recipe", error=RecipeError)
    try:
        return msgspec.convert({} if tree is None else tree, Recipe)
    except msgspec.ValidationError as e:
        raise RecipeError(f"recipe {path} is not valid: {e}") from e
