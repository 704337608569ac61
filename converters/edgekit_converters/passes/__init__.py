"""Passes make a model smaller or faster: a model in, a model out, with typed options.

A pass is one file named after what it does. For a model and an engine it offers the ways of running
it that are worth measuring, best guess first. A scheme is one or several passes in order; the
search composes and measures them, and nothing is believed before it was measured. Other passes
arrive by the entry point `edgekit.passes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import onnx

from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.registry import Registry
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration

KEEP = "keep_float"
"""The option by which a step leaves nodes in float."""

Style = Literal["onnxruntime", "tensorrt", "qnn", "openvino"]
Kind = Literal["rewrite", "preparation", "precision"]


class Step(Strict, frozen=True, kw_only=True):
    """One way to run one pass, fully decided.

    Attributes:
        name: of the pass.
        label: for people and reports, such as `static-int8/u8s8/minmax`; unique for the options.
        options: the pass's options, complete: a recipe with them repeats the step.
        precision: what the model then is, in the words of a profile's `precisions`; None where
            the step leaves it as it was.
    """

    name: str
    label: str
    options: dict[str, Option]
    precision: str | None = None


class Scheme(Strict, frozen=True, kw_only=True):
    """Passes in the order in which they are run; none is the model as it was."""

    steps: tuple[Step, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join(step.label for step in self.steps) or "source"

    @property
    def precision(self) -> str | None:
        """What the last step that changes the precision makes of the model; None without one."""
        return next((s.precision for s in reversed(self.steps) if s.precision is not None), None)


class Pass(Protocol):
    """A transformation of a model. It never changes the model it is given.

    Attributes:
        kind: `rewrite` where the model keeps its precision and gains alone (pruning), `preparation`
            where it only helps a later step (equalisation),
            `precision` where weights or activations are stored in fewer bits.
        needs_samples: whether `apply` cannot do without calibration samples.
    """

    kind: Kind
    needs_samples: bool

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,
        style: Style,
    ) -> tuple[Step, ...]:
        """The ways of running it on this model that are worth measuring, best guess first.

        None where there is nothing in the model for it to do, or the engine lists no precision
        that it makes.

        Args:
            given: options that a recipe fixes; they hold for every offer.
            model: in normal form, with inferred shapes where they are known.
            style: whose rules the graph must follow.

        Raises:
            RecipeError: an option is unknown or out of range.
        """
        ...

    def step(self, options: Mapping[str, Option]) -> Step:
        """The step of these options, completed by defaults and labelled.

        Raises:
            RecipeError: an option is unknown or out of range.
        """
        ...

    def apply(
        self, model: onnx.ModelProto, step: Step, *, calibration: Calibration | None
    ) -> onnx.ModelProto:
        """The model after this step, in normal form again: nodes in order and named.

        Raises:
            BuildError: the step cannot be run on this model, or would change nothing; the message
                says why and names the operator or tensor.
        """
        ...


PASSES: Registry[Pass] = Registry(
    "pass",
    group="edgekit.passes",
    builtin={
        "static-int8": "edgekit_converters.passes.static_int8:PASS",
        "dynamic-int8": "edgekit_converters.passes.dynamic_int8:PASS",
        "fp16": "edgekit_converters.passes.fp16:PASS",
        "int4-weights": "edgekit_converters.passes.int4_weights:PASS",
        "equalise": "edgekit_converters.passes.equalise:PASS",
        "smooth": "edgekit_converters.passes.smooth:PASS",
        "prune": "edgekit_converters.passes.prune:PASS",
        "layout": "edgekit_converters.passes.layout:PASS",
        "batch": "edgekit_converters.passes.batch:PASS",
    },
)
