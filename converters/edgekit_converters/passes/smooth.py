"""SmoothQuant: outliers of activations are moved into the weights that read them.

Transformers have channels whose values are many times those of all others, and a scale for the
whole tensor leaves the others few steps. Dividing each channel by a factor, and multiplying the
rows of the next matrices by it, shares the burden (Xiao et al., "SmoothQuant: Accurate and
Efficient Post-Training Quantization for Large Language Models", 2023, equation 4). The factor goes
into constants that are there already, those of a layer norm for example; where there are none, as
behind a GELU or where a residual reads the tensor too, nothing is changed. The model's answers stay
what they were, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgekit.errors import BuildError
from edgekit.profile import EngineSpec
from edgekit.recipe import Option
from edgekit.structs import Strict
from edgekit_converters.calibrate import Calibration
from edgekit_converters.passes import Kind, Step, Style
from edgekit_converters.passes.edits import checked, copied, step_options
from edgekit_converters.passes.junctions import (
    Junction,
    junctions_of,
    powers_of_two,
    read,
    scaled,
    store,
    values_of,
)
from edgekit_converters.passes.weights import PRODUCTS

NAME = "smooth"
_OFFERED = (0.5, 0.8)


class Options(Strict, frozen=True, kw_only=True):
    """What a recipe may say of this pass.

    Attributes:
        alpha: how much of the burden goes to the weights: 0 none, 1 all.
    """

    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5


class Smooth:
    """The pass."""

    kind: Kind = "preparation"
    needs_samples = True

    def offers(
        self,
        given: Mapping[str, Option],
        *,
        model: onnx.ModelProto,
        engine: EngineSpec,  # noqa: ARG002
        style: Style,  # noqa: ARG002
    ) -> tuple[Step, ...]:
        steps = [self.step({"alpha": alpha, **given}) for alpha in _OFFERED]
        if not _smoothable(model):
            return ()
        return tuple({step.label: step for step in steps}.values())

    def step(self, options: Mapping[str, Option]) -> Step:
        parsed = checked(options, Options, of=NAME)
        return Step(name=NAME, label=f"{NAME}/{parsed.alpha:g}", options=step_options(parsed))

    def apply(
        self, model: onnx.ModelProto, step: Step, *, calibration: Calibration | None
    ) -> onnx.ModelProto:
        options = checked(step.options, Options, of=NAME)
        if calibration is None:
            raise BuildError(
                f"{step.label} needs calibration samples, and there are none",
                hint="give samples with --data, or take smooth out of the recipe",
            )
        junctions = _smoothable(model)
        if not junctions:
            raise BuildError(
                f"{step.label}: nothing in this model can absorb a scale: no matrix product reads a"
                " layer norm, or another weight by ReLU, alone",
                hint="take smooth out of the recipe",
            )
        extremes = _extremes(model, junctions, calibration)
        values = values_of(model, junctions)
        for junction in junctions:
            factors = smoothing(
                extremes[junction.tensor], read(values, junction), alpha=options.alpha
            )
            values = scaled(values, junction, factors)
        copy = copied(model)
        store(copy, values)
        return copy


def smoothing(
    activations: NDArray[np.float64], weights: NDArray[np.float32], *, alpha: float
) -> NDArray[np.float32]:
    """By what to multiply each channel of an activation.

    Args:
        activations: largest absolute value of each channel, [channels].
        weights: likewise, of what reads it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return powers_of_two(weights.astype(np.float64) ** (1 - alpha) / activations**alpha)


def _smoothable(model: onnx.ModelProto) -> tuple[Junction, ...]:
    """Junctions read by matrix products alone."""
    products = {node.name for node in model.graph.node if node.op_type in PRODUCTS}
    return tuple(
        junction
        for junction in junctions_of(model)
        if junction.per_channel == 1 and {weight.node for weight in junction.readers} <= products
    )


def _extremes(
    model: onnx.ModelProto, junctions: Sequence[Junction], calibration: Calibration
) -> dict[str, NDArray[np.float64]]:
    """Largest absolute value by tensor and channel, over all samples."""
    largest: dict[str, NDArray[np.float64]] = {}
    for tensors in calibration.activations(model, [junction.tensor for junction in junctions]):
        for name, values in tensors.items():
            seen = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0).astype(np.float64)
            largest[name] = np.fmax(largest.get(name, 0.0), seen)
    return largest


PASS = Smooth()
