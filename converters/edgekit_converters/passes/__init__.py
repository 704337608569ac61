"""Passes make a model smaller or faster: a model in, a model out, with typed options.

A pass is one file named after what it does. It offers a ladder of schemes, from the one that is
usually best to those worth trying when it is not good enough; a build walks down the ladder and
measures. Others arrive by the entry point `edgekit.passes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec
import onnx

from edgekit.profile import Scalar
from edgekit.registry import Registry
from edgekit_converters.calibrate import Calibrator

Style = Literal["onnxruntime", "tensorrt"]


class Scheme(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a pass, fully decided.

    Attributes:
        name: for people and reports, such as `static-int8/u8s8/minmax`.
        precision: what the artefact then is, in the words of a profile's `precisions`.
        options: the pass's options, complete.
    """

    name: str
    precision: str
    options: dict[str, Scalar]


class Pass(Protocol):
    """A transformation of a model. It never changes the model it is given."""

    def ladder(
        self, given: Mapping[str, Scalar], *, precisions: tuple[str, ...], style: Style
    ) -> tuple[Scheme, ...]:
        """The schemes to try, best guess first; none where the engine takes no such precision.

        Args:
            given: options of the recipe, which hold for every scheme.
            precisions: what the engine takes, in the order to prefer.
            style: whose rules the graph must follow.

        Raises:
            RecipeError: an option is unknown or out of range.
        """
        ...

    def apply(
        self, model: onnx.ModelProto, scheme: Scheme, *, calibrator: Calibrator
    ) -> onnx.ModelProto:
        """The model after this pass.

        Raises:
            BuildError: the pass cannot be run on this model; the message says why.
        """
        ...


PASSES: Registry[Pass] = Registry(
    "pass",
    group="edgekit.passes",
    builtin={"static-int8": "edgekit_converters.passes.static_int8:PASS"},
)
